"""Tests of `engine/metrics`, partly against pycocotools. The official results are in `tests/reference`."""
