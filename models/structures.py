"""Typed records that cross module borders, and the protocols of the plug-in seams."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


class Target(Protocol):
    """The part of a training target that models read (the concrete record is in `datasets`)."""

    @property
    def boxes_xyxy(self) -> Tensor:
        """(N, 4) pixels of the unpadded network input."""

    @property
    def boxes(self) -> Tensor:
        """(N, 4) cxcywh in [0, 1] of the unpadded network input."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64 in 0..K-1."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the unpadded network input."""

    @property
    def image_id(self) -> int:
        """Image id of the data set, for messages."""


class QueryBudget(Protocol):
    """How MANY queries an image gets; the detector still decides WHICH."""

    def __call__(self, feature_map: Tensor, padding_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, D, H, W), (B, H, W) -> num_queries (B,) int64, aux tensors for the losses."""


class BoxDistance(Protocol):
    """ONE object for matching cost and loss: they cannot diverge."""

    is_metric: bool = False
    """Whether `pairwise` is non-negative, symmetric, and obeys the triangle inequality: the matching then computes only
    the costs that bounds cannot exclude. If the class that defines `pairwise` does not declare it, False"""

    def aligned(self, pred: Tensor, target: Tensor, pred_unact: Tensor | None = None) -> Tensor:
        """(N, 4), (N, 4) cxcywh -> (N,); pred_unact (N, 4) are the logits of pred."""

    def pairwise(self, pred: Tensor, target: Tensor) -> Tensor:
        """(N, 4), (M, 4) cxcywh -> (N, M); best in memory row by row of the targets."""


def is_metric(distance: BoxDistance) -> bool:
    """Whether a distance declares its `pairwise` a metric; a class that overrides `pairwise` must declare it again."""
    if "is_metric" in getattr(distance, "__dict__", {}):
        return bool(distance.is_metric)
    for kind in type(distance).__mro__:
        if "is_metric" in vars(kind):
            return bool(distance.is_metric)
        if "pairwise" in vars(kind):
            return False
    return False


class AuxiliaryLoss(Protocol):
    """Reads aux, returns named scalars."""

    def __call__(self, aux: dict[str, Tensor], targets: Sequence[Target]) -> dict[str, Tensor]:
        """The detector's aux tensors and `padded_size` (2,), pixels (H, W) on the host; one target per image."""


@dataclass(frozen=True)
class FeatureTokens:
    """The maps of all levels as one sequence of S tokens, finest level first."""

    tokens: Tensor
    """(B, S, D)"""
    position: Tensor
    """(B, S, D) position encoding, level embedding included"""
    padding_mask: Tensor
    """(B, S) bool"""
    spatial_shapes: tuple[tuple[int, int], ...]
    """(H, W) per level"""
    valid_ratios: Tensor
    """(B, L, 2) unpadded share of each level, (w, h)"""


@dataclass(frozen=True)
class Memory:
    """Output of the encoder, with the masks and shapes of its tokens."""

    tokens: Tensor
    """(B, S, D)"""
    features: FeatureTokens
    """Input of the encoder: padding mask, spatial shapes and valid ratios of the same tokens"""

    def references(self, boxes: Tensor) -> Tensor:
        """(B, Q, 4) boxes of the unpadded image -> (B, Q, L, 4) boxes on each level's padded map."""
        return boxes[:, :, None] * self.features.valid_ratios.repeat(1, 1, 2)[:, None]

    def of(self, images: Tensor) -> "Memory":
        """(n,) rows of the batch -> their memory."""
        names = ("tokens", "position", "padding_mask", "valid_ratios")
        rows = {name: getattr(self.features, name)[images] for name in names}
        return Memory(self.tokens[images], replace(self.features, **rows))


@dataclass(frozen=True)
class LayerPredictions:
    """Predictions of all decoder layers, or of the encoder (one layer), for one set of queries."""

    logits: Tensor
    """(layers, B, Q, K); K+1 with softmax classification"""
    boxes_unact: Tensor
    """(layers, B, Q, 4) cxcywh logits"""
    padding_mask: Tensor
    """(B, Q) bool"""
    counts: tuple[int, ...]
    """Per image, on the host: how many of the first rows take part in matching and losses"""

    @cached_property
    def boxes(self) -> Tensor:
        """(layers, B, Q, 4) cxcywh in [0, 1]."""
        return self.boxes_unact.sigmoid()


@dataclass(frozen=True)
class ProposalSet:
    """Every encoder token, scored and boxed."""

    features: Tensor
    """(B, S, D)"""
    logits: Tensor
    """(B, S, K)"""
    boxes_unact: Tensor
    """(B, S, 4) cxcywh logits; +inf where a token is padding or too close to the border"""
    padding_mask: Tensor
    """(B, S) bool"""
    spatial_shapes: tuple[tuple[int, int], ...]
    """(H, W) per level"""

    def finest_map(self) -> tuple[Tensor, Tensor]:
        """The finest level as a map: (B, D, H, W), and its padding mask (B, H, W)."""
        height, width = self.spatial_shapes[0]
        feature_map = self.features[:, : height * width].transpose(1, 2).unflatten(2, (height, width))
        return feature_map, self.padding_mask[:, : height * width].unflatten(1, (height, width))

    def as_predictions(self) -> LayerPredictions:
        """Every token as a prediction, padding included (published)."""
        nothing_padded = torch.zeros_like(self.padding_mask)
        images, tokens = self.padding_mask.shape
        return LayerPredictions(self.logits[None], self.boxes_unact[None], nothing_padded, (tokens,) * images)


@dataclass(frozen=True)
class SelectedProposals:
    """The best proposals of each image, best first, padded to the batch's largest query count."""

    index: Tensor
    """(B, Q) token of each query"""
    logits: Tensor
    """(B, Q, K)"""
    boxes_unact: Tensor
    """(B, Q, 4) cxcywh logits"""
    padding_mask: Tensor
    """(B, Q) bool, True beyond an image's own query count"""
    counts: tuple[int, ...]
    """The query count of each image, on the host"""

    def as_predictions(self) -> LayerPredictions:
        """The selected proposals as predictions of the encoder."""
        return LayerPredictions(self.logits[None], self.boxes_unact[None], self.padding_mask, self.counts)


@dataclass(frozen=True)
class DenoisingQueries:
    """Noised objects in front of the queries: G groups of 2*N slots, first N positives, then N negatives."""

    content: Tensor
    """(B, G*2N, D)"""
    boxes_unact: Tensor
    """(B, G*2N, 4) cxcywh logits"""
    num_groups: int
    """G"""
    group_size: int
    """2*N, N = most objects of an image of the batch"""
    padding_mask: Tensor
    """(B, G*2N) bool, True in slots without an object"""
    objects: Sequence[Tensor]
    """Per image (n,) int64: rows of its target that are noised"""


@dataclass(frozen=True)
class DetectorOutput:
    """What a detector returns, in training and in evaluation."""

    queries: LayerPredictions
    """Decoder layers, matching queries"""
    num_queries: Tensor
    """(B,) int64"""
    proposals: LayerPredictions
    """Encoder, every token; the padding mask is all False, as published tokens of the padding take part"""
    selected: LayerPredictions
    """Encoder, the tokens that became queries"""
    initial_boxes: Tensor
    """(B, Q, 4) reference boxes of the queries, cxcywh in [0, 1]"""
    padded_size: tuple[int, int]
    """(H, W) of the padded images"""
    denoising: LayerPredictions | None = None
    """Decoder layers, denoising queries; training of DINO only"""
    denoising_queries: DenoisingQueries | None = None
    """Layout of the denoising queries"""
    aux: dict[str, Tensor] = field(default_factory=dict)
    """Tensors of the query budget for the losses"""


@dataclass(frozen=True)
class Detections:
    """Final predictions of one image, best first."""

    boxes: Tensor
    """(N, 4) xyxy in pixels of the original image"""
    scores: Tensor
    """(N,) in [0, 1]"""
    labels: Tensor
    """(N,) int64"""
    corrected_scores: Tensor | None = None
    """(N,) in [0, 1], `models.postprocess.corrected_logits`; None for sigmoid heads"""
    object_probability: Tensor | None = None
    """(N,) corrected probability of an object of any class: its sum is the expected number of objects; None as above"""
    queries: Tensor | None = None
    """(N,) int64 query that each one comes from; None where the queries of several images or tiles were merged"""

    def to(self, device: torch.device | str) -> "Detections":
        corrected, objects, queries = self.corrected_scores, self.object_probability, self.queries
        return Detections(
            self.boxes.to(device),
            self.scores.to(device),
            self.labels.to(device),
            None if corrected is None else corrected.to(device),
            None if objects is None else objects.to(device),
            None if queries is None else queries.to(device),
        )
