"""Tests of `datasets/images`: decoding, cache, checks of files. No annotation rules."""
