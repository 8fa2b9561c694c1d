"""COCO annotation file -> flat arrays, in four files to read in order: json_stream, columns, validation, table."""
