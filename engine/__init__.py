"""Training, evaluation and prediction loops, and the metrics."""
