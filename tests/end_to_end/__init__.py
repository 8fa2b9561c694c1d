"""Tests of whole runs through `main.main`: exit codes, messages, run folders. No unit tests."""
