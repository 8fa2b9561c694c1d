"""The matching cost of every object with every prediction, row by row of the objects, in blocks of limited size."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from models.boxes import by_coordinate, cxcywh_to_xyxy, generalized_iou, size_factor, xyxy_to_cxcywh
from models.structures import BoxDistance, Target

FOCAL_EPS = 1e-12
BLOCK_ELEMENTS = {"cpu": 30_000, "cuda": 2**24}
"""Costs computed at once, per device type; about ten tensors of so many float32 exist for a moment, on CPUs in every
thread. There a block fits the cache and is too small for torch to share it among threads, which the blocks are instead;
on GPUs the number of kernels stays small."""


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
        self._every_row = torch.arange(len(labels), device=labels.device)

    def __len__(self) -> int:
        """Objects."""
        return len(self.labels)

    def centres(self) -> Tensor:
        """(layers, Q, 2) centres of the predictions, pixels."""
        return ((self.pixels[:, :2] + self.pixels[:, 2:]) / 2).view(self.layers, self.queries, 2)

    def of(self, rows: Tensor) -> Tensor:
        """(n,) rows of the objects -> (n, layers, Q)."""
        width = self.layers * self.queries
        step = max(1, self._block() // max(1, len(rows)))
        parts = [self._part(rows, slice(start, start + step)) for start in range(0, width, step)]
        return torch.cat(parts, dim=1).view(len(rows), self.layers, self.queries)

    def whole(self, threads: Executor) -> tuple[Tensor, Tensor]:
        """(layers, N, Q) costs, and their sum: one that is not finite tells that some cost is not."""
        costs = self.class_costs.new_empty(self.layers, len(self), self.queries)

        def fill(rows: slice) -> Tensor:
            block = self.of(self._every_row[rows])
            costs[:, rows] = block.transpose(0, 1)
            return block.sum()

        height = self._height()
        rows = [slice(start, start + height) for start in range(0, len(self), height)]
        return costs, torch.stack(self._run(fill, rows, threads)).sum()

    def cheapest(self, rows: Tensor, length: int, threads: Executor) -> tuple[Tensor, Tensor, Tensor]:
        """Of a single layer: costs (n, length) ascending, their queries (n, length) int32, and the sum of all costs."""

        def find(part: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            block = self.of(part)[:, 0]
            found = block.topk(length, dim=1, largest=False)
            return found.values, found.indices.int(), block.sum()

        found = self._run(find, rows.split(self._height()), threads)
        costs, queries, sums = zip(*found, strict=True)
        return torch.cat(costs), torch.cat(queries), torch.stack(sums).sum()

    def _run(self, work: Callable[[Any], Any], parts: Sequence[Any], threads: Executor) -> list[Any]:
        """The work on all parts: shared among the threads on a CPU, one after the other on a GPU."""
        without_gradient = torch.no_grad()(work)  # a thread has its own gradient mode
        return list((threads.map if self.labels.device.type == "cpu" else map)(without_gradient, parts))

    def _block(self) -> int:
        return BLOCK_ELEMENTS.get(self.labels.device.type, BLOCK_ELEMENTS["cuda"])

    def _height(self) -> int:
        """Rows of a block."""
        return max(1, self._block() // (self.layers * self.queries))

    def _part(self, rows: Tensor, columns: slice) -> Tensor:
        """Costs of some rows and predictions, the layers one after the other."""
        cost = self.class_costs[:, columns].index_select(0, self.labels[rows])
        distance = self.cost.box_distance.pairwise(self.boxes[columns], self.objects[rows])
        cost += distance.T * self.cost.box_weight
        cost -= generalized_iou(self.pixels[columns], self.object_pixels[rows, None]) * self.cost.giou_weight
        return cost
