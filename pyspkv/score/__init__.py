"""From a model and trials to scores and metrics."""
