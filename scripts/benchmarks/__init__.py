"""The benchmarks of scripts/benchmark.py, one module each. Nothing here is imported by the product."""
