"""Tables of experiments: cells, their runner, RESULTS."""
