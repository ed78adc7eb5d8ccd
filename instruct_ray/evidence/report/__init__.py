"""Evidence of a run -> report.html, one page that a person reads."""
