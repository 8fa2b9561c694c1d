"""Tests of cost, bounds and assignment. Losses are tested in `tests/models`."""
