"""Detector output -> boxes in the pixels of the original images."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from models.boxes import cxcywh_to_xyxy, size_factor
from models.structures import Detections, DetectorOutput


class PostProcess:
    """Last layer's predictions, best first, without threshold or suppression; padded queries never appear.

    classification   softmax: one label per query, every query is returned; focal: the best (query, class) pairs
    max_detections   limit with focal classification
    """

    def __init__(self, *, classification: Literal["softmax", "focal"], max_detections: int) -> None:
        self.classification = classification
        self.max_detections = max_detections

    @torch.no_grad()
    def __call__(
        self,
        output: DetectorOutput,
        sizes: Sequence[tuple[int, int]],
        original_sizes: Sequence[tuple[float, float]],
    ) -> list[Detections]:
        """One `Detections` per image.

        sizes            (H, W) of the unpadded network input of each image
        original_sizes   (H, W) of each file
        """
        detections = []
        for i, count in enumerate(output.queries.counts):
            logits = output.queries.logits[-1, i, :count].float()
            scores, labels, query = self._rank(logits)
            factor = size_factor(sizes[i], scores)
            pixels = cxcywh_to_xyxy(output.queries.boxes[-1, i, query]) * factor
            pixels = pixels.clamp(min=0).minimum(factor)
            (height, width), (original_height, original_width) = sizes[i], original_sizes[i]
            scale = pixels.new_tensor([original_width / width, original_height / height]).repeat(2)
            detections.append(Detections(pixels * scale, scores, labels))
        return detections

    def _rank(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(Q, K) -> scores, labels, query rows; descending scores."""
        if self.classification == "softmax":
            scores, labels = logits.softmax(-1)[:, :-1].max(-1)
            scores, query = scores.sort(descending=True)
            return scores, labels[query], query
        classes = logits.shape[-1]
        scores, index = logits.sigmoid().flatten().topk(min(self.max_detections, logits.numel()))
        return scores, index % classes, index.div(classes, rounding_mode="floor")
