"""The detectors: Deformable DETR and DINO, with a fixed or a dynamic number of queries."""
