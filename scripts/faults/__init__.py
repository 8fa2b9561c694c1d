"""The experiments of scripts/chaos.py, one module each."""
