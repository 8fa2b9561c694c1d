"""The matching cost of every object with every prediction, row by row of the objects, in blocks of limited size."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.boxes import by_coordinate, cxcywh_to_xyxy, generalized_iou, size_factor, xyxy_to_cxcywh
from models.structures import BoxDistance, Target

FOCAL_EPS = 1e-12
BLOCK_ELEMENTS = {"cpu": 2**19, "cuda": 2**24}
"""Costs that are computed at once, per device type: about ten tensors of so many float32 exist for a moment. On CPUs
they then fit the cache, on GPUs the number of kernels stays small. A single row may be larger."""


def softmax_class_cost(logits: Tensor) -> Tensor:
    """(..., K) -> (..., K): minus the probability of each class."""
    return -logits.softmax(-1)


def focal_class_cost(logits: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """(..., K) -> (..., K): focal loss of each class minus that of "not this class".

    Source: Zhu et al., Deformable DETR, ICLR 2021.
    """
    probability = logits.sigmoid()
    negative = -(1 - probability + FOCAL_EPS).log() * (1 - alpha) * probability**gamma
    positive = -(probability + FOCAL_EPS).log() * alpha * (1 - probability) ** gamma
    return positive - negative


@dataclass(frozen=True, kw_only=True)
class MatchingCost:
    """Weighted sum of a classification cost, a box distance and minus the generalised IoU."""

    classification: Literal["softmax", "focal"]
    class_weight: float
    box_weight: float
    giou_weight: float
    alpha: float
    """Of the focal cost"""
    gamma: float
    """Of the focal cost"""
    box_distance: BoxDistance
    """The seam shared with the loss"""

    def of_classes(self, logits: Tensor) -> Tensor:
        """(..., K) -> (..., K), weighted."""
        if self.classification == "softmax":
            return softmax_class_cost(logits) * self.class_weight
        return focal_class_cost(logits, alpha=self.alpha, gamma=self.gamma) * self.class_weight


class ImageCosts:
    """Costs of the objects of one image with the predictions of one or more layers; computed when asked for.

    logits    (layers, Q, K)
    boxes     (layers, Q, 4)  cxcywh in [0, 1]
    target    its N objects
    labels    (N,)  classes to match; not the target's own where proposals are class-agnostic

    Box costs see predictions after the round trip through pixels, as in the published code: near-ties then break
    the same way.
    """

    def __init__(self, cost: MatchingCost, logits: Tensor, boxes: Tensor, target: Target, labels: Tensor) -> None:
        self.cost = cost
        self.labels = labels
        self.layers, self.queries = boxes.shape[:2]
        self.class_costs = cost.of_classes(logits.float()).flatten(0, 1).T.contiguous()  # (K, layers * Q)
        factor = size_factor(target.size, boxes)
        pixels = cxcywh_to_xyxy(boxes.flatten(0, 1).float()) * factor
        self.pixels = by_coordinate(pixels)
        self.boxes = by_coordinate(xyxy_to_cxcywh(pixels) / factor)
        self.object_pixels = target.boxes_xyxy
        self.objects = xyxy_to_cxcywh(target.boxes_xyxy) / factor

    def __len__(self) -> int:
        """Objects."""
        return len(self.labels)

    def centres(self) -> Tensor:
        """(layers, Q, 2) centres of the predictions, pixels."""
        return ((self.pixels[:, :2] + self.pixels[:, 2:]) / 2).view(self.layers, self.queries, 2)

    def of(self, rows: Tensor) -> Tensor:
        """(n,) rows of the objects -> (n, layers, Q)."""
        cost = self.class_costs[self.labels[rows]]
        cost += self.cost.box_distance.pairwise(self.boxes, self.objects[rows]).T * self.cost.box_weight
        giou = generalized_iou(self.pixels, self.object_pixels[rows, None])
        cost -= giou * self.cost.giou_weight
        return cost.view(len(rows), self.layers, self.queries)

    def blocks(self, rows: Tensor) -> Iterator[Tensor]:
        """The same, in blocks of at most BLOCK_ELEMENTS costs or one row."""
        height = max(1, BLOCK_ELEMENTS.get(rows.device.type, 2**20) // (self.layers * self.queries))
        for part in rows.split(height):
            yield self.of(part)

    def whole(self) -> tuple[Tensor, Tensor]:
        """(layers, N, Q) costs, and their sum: one that is not finite tells that some cost is not."""
        rows = torch.arange(len(self), device=self.labels.device)
        costs = self.class_costs.new_empty(self.layers, len(self), self.queries)
        total, start = costs.new_zeros(()), 0
        for block in self.blocks(rows):
            costs[:, start : start + len(block)] = block.transpose(0, 1)
            total, start = total + block.sum(), start + len(block)
        return costs, total

    def cheapest(self, rows: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of a single layer: costs (n, length) ascending, their queries (n, length) int32, and the sum of all costs."""
        costs, queries = [], []
        total = self.class_costs.new_zeros(())
        for block in self.blocks(rows):
            found = block[:, 0].topk(length, dim=1, largest=False)
            costs.append(found.values)
            queries.append(found.indices.int())
            total = total + block.sum()
        return torch.cat(costs), torch.cat(queries), total
