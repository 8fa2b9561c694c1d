"""Tests of `datasets/annotations`: columns, checks, faulty entries. No image is decoded."""
