"""Reports for people: report.md, plots, disk usage of an experiment."""
