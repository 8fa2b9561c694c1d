"""Detector output -> boxes in the pixels of the original images, with scores."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from models.boxes import cxcywh_to_xyxy, size_factor
from models.structures import Detections, DetectorOutput


def corrected_logits(logits: Tensor, *, no_object_weight: float) -> Tensor:
    """Softmax logits as if the background's loss had not been weighted, (..., K + 1) -> (..., K + 1).

    A loss weight w of the background has the effect of a training set with w times as much of it. Its probability is
    divided by w, and all are normalised again: in logits, -ln w for the background, which stands last.

    Source: Elkan, The Foundations of Cost-Sensitive Learning, IJCAI 2001, theorem 2.
    """
    background = logits[..., -1:] - math.log(no_object_weight)
    return torch.cat([logits[..., :-1], background], dim=-1)


class PostProcess:
    """Last layer's predictions, best first, without threshold or suppression; padded queries never appear.

    classification     softmax: one label per query, every query is returned; focal: the best (query, class) pairs
    max_detections     limit with focal classification
    scores             published: the probability of the label as trained. corrected: `corrected_logits`; softmax only
    no_object_weight   weight of the background in the loss of a softmax head
    """

    def __init__(
        self,
        *,
        classification: Literal["softmax", "focal"],
        max_detections: int,
        scores: Literal["published", "corrected"] = "published",
        no_object_weight: float = 1.0,
    ) -> None:
        self.classification = classification
        self.max_detections = max_detections
        self.scores = scores
        self.no_object_weight = no_object_weight
        self.correctable = classification == "softmax" and no_object_weight > 0

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
            corrected, objects = self._correct(logits[query]) if self.correctable else (None, None)
            factor = size_factor(sizes[i], scores)
            pixels = cxcywh_to_xyxy(output.queries.boxes[-1, i, query]) * factor
            pixels = pixels.clamp(min=0).minimum(factor)
            (height, width), (original_height, original_width) = sizes[i], original_sizes[i]
            scale = pixels.new_tensor([original_width / width, original_height / height]).repeat(2)
            detections.append(Detections(pixels * scale, scores, labels, corrected, objects, query))
        return detections

    def _rank(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(Q, K) -> scores, labels, query rows; descending scores."""
        if self.classification == "softmax":
            if self.scores == "corrected":
                logits = corrected_logits(logits, no_object_weight=self.no_object_weight)
            scores, labels = logits.softmax(-1)[:, :-1].max(-1)
            scores, query = scores.sort(descending=True)
            return scores, labels[query], query
        classes = logits.shape[-1]
        scores, index = logits.sigmoid().flatten().topk(min(self.max_detections, logits.numel()))
        return scores, index % classes, index.div(classes, rounding_mode="floor")

    def _correct(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(Q, K + 1) -> corrected score of the label, corrected probability of any object."""
        probabilities = corrected_logits(logits, no_object_weight=self.no_object_weight).softmax(-1)
        return probabilities[:, :-1].max(-1).values, probabilities[:, :-1].sum(-1).clamp(max=1)
