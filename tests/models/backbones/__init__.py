"""Tests of backbones and their weights; nothing is downloaded."""
