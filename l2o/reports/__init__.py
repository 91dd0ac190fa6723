"""Results as statistics, tables, figures and pages."""

from l2o.extras import require

require("evaluate", "l2o.reports")

from l2o.reports.comparison import summarize, summary_table
from l2o.reports.contents import write_report
from l2o.reports.figures import drawings
from l2o.reports.plots import png

__all__ = ["drawings", "png", "summarize", "summary_table", "write_report"]
