"""The detectors, from images to predictions, and their losses. No data sets, no training loop, no files."""
