"""Backbones, their catalogue, and their pretrained weights. No other part of a detector."""
