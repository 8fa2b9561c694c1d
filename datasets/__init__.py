"""Data: COCO files to batches, joint transforms, samplers, and procedural scenes."""
