"""Comparisons with values recorded from the published code and the official metrics. No other tests."""
