"""Bounds of matching costs: never above a cost, and close enough to find the cheapest queries of a crowd."""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from d3q import LogSizeL1
from datasets.structures import Target
from models.boxes import L1Distance, cxcywh_to_xyxy, generalized_iou, generalized_iou_bound
from models.matching.cost import ImageCosts, MatchingCost
from models.matching.hungarian import HungarianMatcher, MatchRequest, match
from models.structures import BoxDistance, is_metric

SIDE = 200


def make_boxes(kind: str, count: int, generator: torch.Generator) -> Tensor:
    """(count, 4) cxcywh in [0, 1]."""
    centres, sides = torch.rand(2, count, 2, generator=generator)
    if kind == "crowd":
        return torch.cat([0.4 + 0.1 * centres, 0.02 + 0.02 * sides], dim=1)
    if kind == "alike":
        return torch.tensor([0.3, 0.7, 0.05, 0.02]).repeat(count, 1)
    if kind == "lines":  # without width, and some in one place
        return torch.cat([centres.round(decimals=1), sides * torch.tensor([0.0, 0.1])], dim=1)
    if kind == "specks":
        return torch.cat([centres, 1e-5 * (0.2 + sides)], dim=1)
    return torch.cat([centres, sides], dim=1)


def make_costs(
    predicted: Tensor,
    objects: Tensor,
    generator: torch.Generator,
    *,
    box_distance: BoxDistance | None = None,
    classification: Literal["softmax", "focal"] = "focal",
    box_weight: float = 0.5,
    giou_weight: float = 2.0,
) -> ImageCosts:
    cost = MatchingCost(
        classification=classification,
        class_weight=1.0,
        box_weight=box_weight,
        giou_weight=giou_weight,
        alpha=0.25,
        gamma=2.0,
        box_distance=box_distance or LogSizeL1(),
    )
    labels = torch.randint(0, 3, (len(objects),), generator=generator)
    target = Target(cxcywh_to_xyxy(objects) * SIDE, labels, 0, (SIDE, SIDE), (SIDE, SIDE))
    logits = 3 * torch.randn(1, len(predicted), 3, generator=generator)
    return ImageCosts(cost, logits, predicted[None], target, labels)


@pytest.mark.parametrize("weights", [(0.5, 2.0), (5.0, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("box_distance", [LogSizeL1(), L1Distance()])
@pytest.mark.parametrize("objects", ["any", "crowd", "alike", "specks"])
def test_bounds_are_never_above_a_cost(objects: str, box_distance: BoxDistance, weights: tuple[float, float]) -> None:
    generator = torch.Generator().manual_seed(3)
    kinds = ["any", "crowd", "alike", "lines", "specks"]
    predicted = torch.cat([make_boxes(kind, 300, generator) for kind in kinds])
    for count in (1, 2, 7, 8):
        for classification in ("softmax", "focal"):
            costs = make_costs(
                predicted,
                make_boxes(objects, count, generator),
                generator,
                box_distance=box_distance,
                classification="softmax" if classification == "softmax" else "focal",
                box_weight=weights[0],
                giou_weight=weights[1],
            )
            bounds = costs.cost.bounds(costs.predictions, costs.objects)
            every = costs.cost.of_pairs(costs.predictions, costs.objects)
            assert bool((bounds <= every).all()), f"{(bounds - every).max()}"


def test_the_overlap_is_bounded_closely_for_one_object_apart() -> None:
    generator = torch.Generator().manual_seed(4)
    boxes = SIDE * cxcywh_to_xyxy(make_boxes("crowd", 100, generator))
    single = torch.tensor([[10.0, 10.0, 24.0, 18.0]])
    bounds = generalized_iou_bound(boxes, single)
    torch.testing.assert_close(bounds, generalized_iou(boxes, single), atol=2e-5, rtol=0)


def test_lists_from_bounds() -> None:
    """They hold the costs of their queries, omit none that is below their bound, and are mostly complete."""
    generator = torch.Generator().manual_seed(5)
    objects = torch.cat([make_boxes("crowd", 90, generator), make_boxes("any", 10, generator)])
    near = objects.repeat(5, 1) * (1 + 0.2 * torch.randn(500, 4, generator=generator))
    costs = make_costs(torch.cat([near.clamp(0, 1), make_boxes("any", 5500, generator)]), objects, generator)
    with ThreadPoolExecutor(2) as threads:
        found = costs.cheap(5, threads)
    every = costs.of(torch.arange(100))[:, 0]
    assert found.costs.equal(every.gather(1, found.queries.long()))
    others = every.scatter(1, found.queries.long(), torch.inf).amin(1)
    assert bool((found.rest <= others).all())
    complete = found.costs[:, -1] <= found.rest
    assert found.costs[complete].equal(every.topk(5, largest=False).values[complete])
    assert int(complete.sum()) > 50


class SmoothL1:
    """No metric: near zero it is a square, so that two short ways are shorter than the long one."""

    def aligned(self, pred: Tensor, target: Tensor, pred_unact: Tensor | None = None) -> Tensor:
        return F.smooth_l1_loss(pred, target, reduction="none").sum(-1)

    def pairwise(self, pred: Tensor, target: Tensor) -> Tensor:
        shape = (len(pred), len(target), 4)
        return F.smooth_l1_loss(pred[:, None].expand(shape), target.expand(shape), reduction="none").sum(-1)


class SquaredL2(SmoothL1):
    def pairwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return torch.cdist(pred, target, p=2) ** 2


class SquaredL1(L1Distance):
    """A metric's subclass: what that says does not hold for its own `pairwise`."""

    def pairwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return super().pairwise(pred, target) ** 2


class Denying(L1Distance):
    is_metric = False


class Vouched(SmoothL1):
    """Metric indeed, and says so."""

    is_metric = True

    def pairwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return torch.cdist(pred, target, p=2)


class Capped(L1Distance):
    """Vouched for by the one who made it."""

    def __init__(self) -> None:
        self.is_metric = True

    def pairwise(self, pred: Tensor, target: Tensor) -> Tensor:
        return super().pairwise(pred, target).clamp(max=0.3)


BOUNDED = [L1Distance(), LogSizeL1(), LogSizeL1(form="logsigmoid"), Vouched(), Capped()]
UNBOUNDED = [SmoothL1(), SquaredL2(), SquaredL1(), Denying()]


def test_bounds_are_used_where_a_distance_says_that_it_is_a_metric() -> None:
    assert [is_metric(distance) for distance in BOUNDED] == [True] * len(BOUNDED)
    assert [is_metric(distance) for distance in UNBOUNDED] == [False] * len(UNBOUNDED)


@pytest.mark.parametrize("weights", [(5.0, 0.0), (5.0, 2.0), (5.0, -2.0), (-5.0, 2.0)])
@pytest.mark.parametrize("distance", [*BOUNDED, *UNBOUNDED], ids=lambda distance: type(distance).__name__)
def test_the_matching_is_exact_for_every_distance(distance: BoxDistance, weights: tuple[float, float]) -> None:
    """Of 300 objects and 4,000 predictions elsewhere, as scipy finds it from every cost."""
    generator = torch.Generator().manual_seed(6)
    objects, predicted = make_boxes("any", 300, generator), make_boxes("crowd", 4000, generator)
    costs = make_costs(
        predicted, objects, generator, box_distance=distance, box_weight=weights[0], giou_weight=weights[1]
    )
    labels = costs.objects.labels
    target = Target(costs.objects.pixels, labels, 0, (SIDE, SIDE), (SIDE, SIDE))
    logits = torch.zeros(1, 1, 4000, 3)
    matcher = HungarianMatcher(cost=costs.cost, drop_off_centre=False)
    request = MatchRequest(matcher, logits, predicted[None, None], [4000], [target], [labels])
    (found,) = match([request])
    every = ImageCosts(costs.cost, logits[0], predicted[None], target, labels).of(torch.arange(300))[:, 0].double()
    rows, columns = linear_sum_assignment(every)
    assert found.target.sort().values.tolist() == list(range(300))
    assert len(found.query.unique()) == 300
    assert float(every[found.target, found.query].sum()) == pytest.approx(float(every[rows, columns].sum()), abs=1e-5)
