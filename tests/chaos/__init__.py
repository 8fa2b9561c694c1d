"""The experiments of tests/chaos/experiments.py, one module each."""
