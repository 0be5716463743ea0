"""Tables of experiments: the cells, the runner and the results."""
