"""Backbones, the catalogue that names them, and their pretrained weights. Nothing else of a detector."""
