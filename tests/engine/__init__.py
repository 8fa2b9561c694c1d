"""Tests of the training loop and its parts. Whole runs are in `tests/end_to_end`."""
