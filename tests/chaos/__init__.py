"""Fault injection: runs are stopped, killed or damaged, and must end bit-identical to uninterrupted ones. No unit
tests.

`experiments.py` is the command behind `scripts/chaos.sh`; `resume`, `kill`, `damage`, `disk`, `sigterm`, `restart` and
`throughput` are its experiments, one module each; `test_chaos.py` tests the experiments themselves.
"""
