"""Procedural aerial scenes with boxes. No files: scripts/make_scenes.py writes them."""
