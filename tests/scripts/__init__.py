"""Tests of the commands in `scripts`. Their shared parts are tested beside what they use."""
