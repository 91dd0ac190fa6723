"""Results as statistics, tables, figures and pages."""

from l2o.extras import require

require("evaluate", "l2o.reports")

from l2o.reports.comparison import summarize
from l2o.reports.contents import write_report
from l2o.reports.figures import drawings
from l2o.reports.style import png
from l2o.reports.text import shares_table, summary_table

__all__ = ["drawings", "png", "shares_table", "summarize", "summary_table", "write_report"]
