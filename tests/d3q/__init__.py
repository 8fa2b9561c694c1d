"""Tests of `d3q`, which need torch only. Comparisons with the published code are in `tests/reference`."""
