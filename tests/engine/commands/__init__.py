"""Tests of single parts of `engine/commands`. The commands themselves are tested in `tests/end_to_end`."""
