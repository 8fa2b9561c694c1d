"""Processes of a run: start, collectives, signals, watchdog. Nothing here knows detectors or data."""
