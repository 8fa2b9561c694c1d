"""Tests of detectors, losses and their parts. Values recorded from the published code are in `tests/reference`."""
