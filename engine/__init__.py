"""The training loop and what it needs. It builds neither detectors nor data sets: only `commands` does."""
