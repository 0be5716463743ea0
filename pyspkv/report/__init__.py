"""What people look at: report.md, plots, what an experiment weighs."""
