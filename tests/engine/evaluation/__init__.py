"""Tests of `engine/evaluation`. The formulas of the metrics are tested in `tests/engine/metrics`."""
