"""Tests of `datasets/synthetic`. Its command is tested in `tests/scripts`."""
