"""The data report: what became of the rows, on one page."""
