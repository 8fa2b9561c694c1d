"""Prediction on a user's own images: tiles, merging across their seams, results in the formats of other tools.

Receives callables; images are read by `datasets`, detectors are built by `engine/commands`.
"""
