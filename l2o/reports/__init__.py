"""Results as statistics, tables, figures and pages."""
