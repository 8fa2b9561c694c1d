"""The matching cost of every object with every prediction, row by row of the objects, in blocks of limited size."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from models.boxes import (
    BOUND_SLACK,
    cxcywh_to_xyxy,
    generalized_iou,
    generalized_iou_bound,
    size_factor,
    xyxy_to_cxcywh,
)
from models.structures import BoxDistance, Target, is_metric

FOCAL_EPS = 1e-12
BLOCK_ELEMENTS = {"cpu": 240_000, "cuda": 2**24}
"""Costs per block and device type; peak memory is about ten float32 tensors of this size, on CPUs in every thread.
There, larger blocks exceed the cache and smaller ones are dominated by the overhead of each operation."""
GROUP = 8
"""Neighbouring objects that share bounds of their costs; larger groups have looser bounds"""
CANDIDATES = 16
"""For a group, 1 in 16 queries has its costs computed, those of least bound; at least four times the list length"""


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


class Predictions(NamedTuple):
    """Cost terms of m predictions; one contiguous row per class or coordinate."""

    class_costs: Tensor
    """(K, m), weighted"""
    boxes: Tensor
    """(4, m) cxcywh in [0, 1]"""
    pixels: Tensor
    """(4, m) xyxy"""

    def split(self, step: int) -> list["Predictions"]:
        """Step by step."""
        return [Predictions(*parts) for parts in zip(*(table.split(step, dim=1) for table in self), strict=True)]

    def select(self, places: Tensor) -> "Predictions":
        """(n,) indices -> these predictions."""
        return Predictions(*(table.index_select(1, places) for table in self))


class Objects(NamedTuple):
    """Cost terms of n objects."""

    labels: Tensor
    """(n,)"""
    boxes: Tensor
    """(n, 4) cxcywh in [0, 1]"""
    pixels: Tensor
    """(n, 4) xyxy"""

    def select(self, rows: Tensor) -> "Objects":
        """(m,) rows -> these objects."""
        return Objects(*(table[rows] for table in self))


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
    """The same object as in the loss"""

    def of_classes(self, logits: Tensor) -> Tensor:
        """(..., K) -> (..., K), weighted."""
        if self.classification == "softmax":
            return softmax_class_cost(logits) * self.class_weight
        return focal_class_cost(logits, alpha=self.alpha, gamma=self.gamma) * self.class_weight

    def of_pairs(self, predictions: Predictions, objects: Objects) -> Tensor:
        """m, n -> (n, m)."""
        cost = predictions.class_costs.index_select(0, objects.labels)  # (n, m)
        cost += self.box_distance.pairwise(predictions.boxes.T, objects.boxes).T * self.box_weight  # (m, n).T
        cost -= generalized_iou(predictions.pixels.T, objects.pixels[:, None]) * self.giou_weight
        return cost

    @property
    def has_bounds(self) -> bool:
        """Whether `bounds` holds: of a metric, and of terms with weights of the usual sign."""
        return is_metric(self.box_distance) and self.box_weight >= 0 and self.giou_weight >= 0

    def bounds(self, predictions: Predictions, group: Objects) -> Tensor:
        """m, n -> (m,): of each prediction, never above its cost with one of the objects as `of_pairs` computes it.

        The sum of the bounds of its terms, in the same order because rounding is monotonic: the least class cost of the
        group, and by the triangle inequality the distance to the mean box minus the group's radius. Only if
        `has_bounds`.
        """
        middle = group.boxes.mean(0, keepdim=True)  # (1, 4)
        radius = self.box_distance.pairwise(middle, group.boxes).amax()  # ()
        distance = self.box_distance.pairwise(predictions.boxes.T, middle)[:, 0]  # (m,)
        distance = distance * (1 - BOUND_SLACK) - (radius + BOUND_SLACK) * (1 + BOUND_SLACK)
        bound = predictions.class_costs.index_select(0, group.labels.unique()).amin(0)  # (m,)
        bound += distance.clamp(min=0) * self.box_weight
        bound -= generalized_iou_bound(predictions.pixels.T, group.pixels) * self.giou_weight
        return bound


class Cheapest(NamedTuple):
    """The K cheapest queries of n objects among the computed ones, ascending."""

    costs: Tensor
    """(n, K)"""
    queries: Tensor
    """(n, K) int32"""
    rest: Tensor
    """(n,) lower bound of the cost of any other query; infinite if none can be needed"""
    total: Tensor
    """() a sum that is finite only if every cost is finite"""


class ImageCosts:
    """Costs of the objects of one image with the predictions of one or more layers, computed on demand.

    logits    (layers, Q, K)
    boxes     (layers, Q, 4)  cxcywh in [0, 1]
    target    its N objects
    labels    (N,)  classes to match; not the target's own where proposals are class-agnostic

    Box costs see predictions after the round trip through pixels, as in the published code: near-ties then break
    the same way.
    """

    def __init__(self, cost: MatchingCost, logits: Tensor, boxes: Tensor, target: Target, labels: Tensor) -> None:
        self.cost = cost
        self.device = labels.device
        self.layers, self.queries = boxes.shape[:2]
        factor = size_factor(target.size, boxes)
        pixels = cxcywh_to_xyxy(boxes.flatten(0, 1).float()) * factor  # (layers*Q, 4)
        class_costs = cost.of_classes(logits.float()).flatten(0, 1)  # (layers*Q, K)
        tables = class_costs, xyxy_to_cxcywh(pixels) / factor, pixels
        self.predictions = Predictions(*(table.T.contiguous() for table in tables))  # (K | 4, layers*Q)
        self.objects = Objects(labels, xyxy_to_cxcywh(target.boxes_xyxy) / factor, target.boxes_xyxy)
        self._every_row = torch.arange(len(labels), device=labels.device)  # (N,)

    def __len__(self) -> int:
        """Objects."""
        return len(self.objects.labels)

    def centres(self) -> Tensor:
        """(layers, Q, 2) centres of the predictions, pixels."""
        pixels = self.predictions.pixels
        return ((pixels[:2] + pixels[2:]) / 2).T.view(self.layers, self.queries, 2)

    def of(self, rows: Tensor) -> Tensor:
        """(n,) rows of the objects -> (n, layers, Q)."""
        objects, step = self.objects.select(rows), max(1, self._block() // max(1, len(rows)))
        parts = [self.cost.of_pairs(predictions, objects) for predictions in self.predictions.split(step)]
        return torch.cat(parts, dim=1).view(len(rows), self.layers, self.queries)

    def whole(self, threads: Executor) -> tuple[Tensor, Tensor]:
        """(layers, N, Q) costs, and their sum, which is finite only if every cost is."""
        costs = self.predictions.class_costs.new_empty(self.layers, len(self), self.queries)

        def fill(rows: slice) -> Tensor:
            block = self.of(self._every_row[rows])  # (rows, layers, Q)
            costs[:, rows] = block.transpose(0, 1)
            return block.sum()

        height = self._height()
        rows = [slice(start, start + height) for start in range(0, len(self), height)]
        return costs, torch.stack(self._run(fill, rows, threads)).sum()

    def cheapest(self, rows: Tensor, length: int, threads: Executor) -> Cheapest:
        """Of a single layer: the cheapest queries of some objects, length < Q."""

        def find(part: Tensor) -> Cheapest:
            block = self.of(part)[:, 0]  # (n, Q)
            found = block.topk(length + 1, dim=1, largest=False)  # (n, K+1)
            rest = found.values[:, -1] if length < len(self) else block.new_full((len(part),), torch.inf)
            return Cheapest(found.values[:, :-1], found.indices[:, :-1].int(), rest, block.sum())

        return _join(self._run(find, rows.split(self._height()), threads))

    def cheap(self, length: int, threads: Executor) -> Cheapest:
        """Of a single layer: cheap queries of all objects, most of them the cheapest, length < Q.

        Neighbouring objects share bounds of their costs; costs are computed for the queries of the least bounds only.
        On GPUs, and without bounds, all costs are computed: there they take less time than many small kernels.
        """
        if self.device.type != "cpu" or not self.cost.has_bounds:
            return self.cheapest(self._every_row, length, threads)
        candidates = min(self.queries, max(self.queries // CANDIDATES, 4 * (length + 1)))

        def find(rows: Tensor) -> Cheapest:
            group = self.objects.select(rows)
            parts = self.predictions.split(self._block())
            bounds = torch.cat([self.cost.bounds(part, group) for part in parts])  # (Q,)
            least, queries = bounds.topk(candidates, largest=False, sorted=False)  # (candidates,)
            costs = self.cost.of_pairs(self.predictions.select(queries), group)  # (n, candidates)
            found = costs.topk(length + 1, largest=False)  # (n, K+1)
            rest = torch.minimum(found.values[:, -1], least.amax())  # (n,)
            places = queries[found.indices[:, :-1]].int()
            return Cheapest(found.values[:, :-1], places, rest, bounds.sum() + costs.sum())

        order = _neighbours(self.objects.boxes[:, :2])
        costs, queries, rest, total = _join(self._run(find, order.split(GROUP), threads))
        back = order.argsort()
        return Cheapest(costs[back], queries[back], rest[back], total)

    def _run(self, work: Callable[[Any], Any], parts: Sequence[Any], threads: Executor) -> list[Any]:
        """Map the work over all parts: in the threads on a CPU, one by one on a GPU."""
        without_gradient = torch.no_grad()(work)  # a thread has its own gradient mode
        return list((threads.map if self.device.type == "cpu" else map)(without_gradient, parts))

    def _block(self) -> int:
        return BLOCK_ELEMENTS.get(self.device.type, BLOCK_ELEMENTS["cuda"])

    def _height(self) -> int:
        """Rows of a block."""
        return max(1, self._block() // (self.layers * self.queries))


def _join(parts: Sequence[Cheapest]) -> Cheapest:
    costs, queries, rest, totals = zip(*parts, strict=True)
    return Cheapest(torch.cat(costs), torch.cat(queries), torch.cat(rest), torch.stack(totals).sum())


def _neighbours(points: Tensor) -> Tensor:
    """(N, 2) in [0, 1] -> (N,) an order that keeps neighbours together: down one vertical strip and up the next."""
    strips = max(1, round((len(points) / GROUP) ** 0.5))
    strip = points[:, 0].argsort().argsort() * strips // len(points)
    along = torch.where(strip % 2 == 0, points[:, 1], -points[:, 1])
    return (2 * strip + along).argsort()
