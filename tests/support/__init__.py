"""Helpers that several test folders share. No tests."""
