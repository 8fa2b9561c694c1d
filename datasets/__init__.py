"""Data: COCO files and images to batches, and procedural scenes. No model, no training loop, no download."""
