"""Helpers of several scripts: the COCO writer and access to files in wheels. No commands, no single data set."""
