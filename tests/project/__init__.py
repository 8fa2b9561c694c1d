"""Tests of the repository itself: layering and limits, packaging, README, shell scripts. No behaviour."""
