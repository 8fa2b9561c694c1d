"""Tests of `configs`: the loader, the schema, the shipped experiments. No data and no detectors."""
