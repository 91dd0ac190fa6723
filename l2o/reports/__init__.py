"""Results as statistics, tables, figures and pages."""

from l2o.extras import require

require("evaluate", "l2o.reports")
