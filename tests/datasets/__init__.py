"""Tests of `datasets`, on files that each test writes. Runs on bad data are in `tests/end_to_end`."""
