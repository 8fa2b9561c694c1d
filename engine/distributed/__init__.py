"""Processes of a run: start, collectives, signals, the watchdog. Knows nothing of detectors or data."""
