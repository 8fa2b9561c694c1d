"""What several scripts share: the COCO writer, files out of wheels. No commands."""
