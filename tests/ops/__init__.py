"""Tests of the operator on CPUs: every backend against the definition, and the build."""
