"""Procedural overhead scenes, each a function of (seed, index, size). Nothing here reads a file."""
