"""Tests of checkpoints and run folders. Resuming whole runs is tested in `tests/end_to_end`."""
