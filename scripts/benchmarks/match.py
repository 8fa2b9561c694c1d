"""Matching: all layers at once, against a cost matrix of all predictions and an assignment per layer.

A full-size DINO on one 800x800 image: six decoder layers of 2,000 queries, and the 53,294 tokens of the encoder. The
published computation is reimplemented (docs/fidelity.md): (Q, N) costs by broadcasting, scipy on that matrix. The
predictions are those of a trained detector (up to eight near every object), random ones, or all nearly alike, which
makes the assignment hard. "other matches" counts objects with another prediction, and "cost difference" is the total
cost of all matches here minus that of the published ones, both from the same costs, summed in float64.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from d3q import LogSizeL1
from datasets.structures import Target
from models.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from models.matching.cost import ImageCosts, MatchingCost
from models.matching.hungarian import HungarianMatcher, MatchRequest, match
from scripts.benchmarks.harness import Cell, Table, costs_alternately, peak_mebibytes

SIDE = 800
CLASSES = 8
STACKS = {"encoder": (1, 53294, "focal"), "decoder": (6, 2000, "softmax")}
"""Layers, predictions, classification"""
EPS = 1e-6


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--objects", type=int, nargs="+", default=[20, 300, 1500])
    parser.add_argument("--stacks", nargs="+", default=list(STACKS), choices=list(STACKS))
    parser.add_argument("--predictions", nargs="+", default=list(MAKERS), choices=list(MAKERS))


def measure(options: argparse.Namespace) -> list[Table]:
    return [Table(_title(stack), list(_rows(stack, options))) for stack in options.stacks]


def _title(stack: str) -> str:
    layers, predictions, _ = STACKS[stack]
    return f"{stack}, {layers} x {predictions:,} predictions" if layers > 1 else f"{stack}, {predictions:,} predictions"


def _rows(stack: str, options: argparse.Namespace) -> Iterator[dict[str, Cell]]:
    for kind in options.predictions:
        for count in options.objects:
            request = make_request(stack, kind, count, device=options.device)
            work = {"published": partial(published_match, request), "here": partial(_match, request)}
            queries: dict[str, Tensor] = {}
            memory = {name: peak_mebibytes(partial(_keep, queries, name, run)) for name, run in work.items()}
            costs = costs_alternately(work, repeats=options.repeats)
            yield {
                "predictions": kind,
                "objects": count,
                "published, ms": 1e3 * costs["published"].wall,
                "here, ms": 1e3 * costs["here"].wall,
                "share of time": costs["here"].wall / costs["published"].wall,
                "share of CPU time": costs["here"].cpu / costs["published"].cpu,
                "published, MiB": memory["published"],
                "here, MiB": memory["here"],
                "share of memory": memory["here"] / max(memory["published"], 1.0),
                "other matches": int((queries["here"] != queries["published"]).sum()),
                "cost difference": _total(request, queries["here"]) - _total(request, queries["published"]),
            }


def _match(request: MatchRequest) -> Tensor:
    """(layers, N) matched queries of the only image."""
    return match([request])[0].query.view(len(request.logits), -1).cpu()


def _total(request: MatchRequest, queries: Tensor) -> float:
    """Cost of all matches: (layers, N) queries."""
    total = 0.0
    for layer, matched in enumerate(queries):
        place = matched.to(request.boxes.device)
        logits, boxes = request.logits[layer, 0, place], request.boxes[layer, 0, place]
        costs = ImageCosts(request.matcher.cost, logits[None], boxes[None], request.targets[0], request.labels[0])
        total += float(costs.of(torch.arange(len(place), device=place.device))[:, 0].diagonal().double().sum())
    return total


def _keep(results: dict[str, Tensor], name: str, run: Callable[[], Tensor]) -> None:
    results[name] = run()


def make_request(stack: str, kind: str, count: int, *, device: str) -> MatchRequest:
    layers, predictions, classification = STACKS[stack]
    generator = torch.Generator().manual_seed(0)
    sides = (6 + 24 * torch.rand(count, 2, generator=generator)) / SIDE
    boxes = torch.cat([sides / 2 + torch.rand(count, 2, generator=generator) * (1 - sides), sides], dim=1)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    made = [MAKERS[kind](predictions, boxes, labels, generator) for _ in range(layers)]
    logits, predicted = (torch.stack(part)[:, None].to(device) for part in zip(*made, strict=True))
    if classification == "softmax":  # "no object" is as likely as not
        logits = torch.cat([logits, torch.zeros_like(logits[..., :1])], dim=-1)
    cost = MatchingCost(
        classification="softmax" if classification == "softmax" else "focal",
        class_weight=1.0 if classification == "softmax" else 2.0,
        box_weight=0.5,
        giou_weight=2.0,
        alpha=0.25,
        gamma=2.0,
        box_distance=LogSizeL1(),
    )
    target = Target(cxcywh_to_xyxy(boxes) * SIDE, labels, 0, (SIDE, SIDE), (SIDE, SIDE)).to(device)
    matcher = HungarianMatcher(cost=cost, drop_off_centre=False)
    return MatchRequest(matcher, logits, predicted, [predictions], [target], [target.labels])


def _trained(number: int, boxes: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(Q, K) logits and (Q, 4) boxes: up to eight around every object, all other queries at random places."""
    logits, predicted = _random(number, boxes, labels, generator)
    near = max(1, min(8, number // len(boxes))) * len(boxes)
    place = torch.randperm(number, generator=generator)[:near]
    owner = torch.arange(near) % len(boxes)
    noise = 0.2 * torch.randn(near, 4, generator=generator) * boxes[owner][:, 2:].repeat(1, 2)
    predicted[place] = (boxes[owner] + noise).clamp(1e-3, 1)
    logits[place, labels[owner]] += 4 + torch.randn(near, generator=generator)
    return logits, predicted


def _random(number: int, boxes: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    sides = 0.005 + 0.1 * torch.rand(number, 2, generator=generator)
    predicted = torch.cat([torch.rand(number, 2, generator=generator), sides], dim=1)
    return torch.randn(number, CLASSES, generator=generator) - 5, predicted


def _alike(number: int, boxes: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Around the middle of the image, within a few pixels."""
    logits, predicted = _random(number, boxes, labels, generator)
    middle = torch.tensor([0.5, 0.5, 0.1, 0.1])
    return logits * 0.02, middle + 0.01 * (torch.rand(predicted.shape, generator=generator) - 0.5)


MAKERS = {"trained": _trained, "random": _random, "alike": _alike}


def published_match(request: MatchRequest) -> Tensor:
    """(layers, N) matched queries of the only image."""
    target, labels = request.targets[0], request.labels[0]
    matched = []
    for logits, boxes in zip(request.logits[:, 0], request.boxes[:, 0], strict=True):
        pixels = cxcywh_to_xyxy(boxes) * SIDE
        cost = _class_cost(request.matcher.cost, logits, labels)
        objects = xyxy_to_cxcywh(target.boxes_xyxy) / SIDE
        cost = cost + _box_cost(xyxy_to_cxcywh(pixels) / SIDE, objects) * request.matcher.cost.box_weight
        cost = cost + _giou_cost(pixels, target.boxes_xyxy) * request.matcher.cost.giou_weight
        queries, objects = linear_sum_assignment(cost.cpu())
        matched.append(torch.from_numpy(queries)[torch.from_numpy(objects).argsort()])
    return torch.stack(matched)


def _class_cost(cost: MatchingCost, logits: Tensor, labels: Tensor) -> Tensor:
    if cost.classification == "softmax":
        return -logits.softmax(-1)[:, labels] * cost.class_weight
    probability = logits.sigmoid()
    negative = -(1 - probability + 1e-12).log() * (1 - cost.alpha) * probability.pow(cost.gamma)
    positive = -(probability + 1e-12).log() * cost.alpha * (1 - probability).pow(cost.gamma)
    return (positive[:, labels] - negative[:, labels]) * cost.class_weight


def _box_cost(boxes: Tensor, objects: Tensor) -> Tensor:
    """(Q, 4), (N, 4) cxcywh -> (Q, N)."""
    centre = (boxes[:, None, :2] - objects[None, :, :2]).abs().sum(-1)
    return centre + (boxes[:, None, 2:] / objects[None, :, 2:]).log().abs().sum(-1)


def _giou_cost(boxes: Tensor, objects: Tensor) -> Tensor:
    """(Q, 4), (N, 4) xyxy -> (Q, N)."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    object_area = (objects[:, 2] - objects[:, 0]) * (objects[:, 3] - objects[:, 1])
    top_left = torch.max(boxes[:, None, :2], objects[None, :, :2])
    bottom_right = torch.min(boxes[:, None, 2:], objects[None, :, 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    overlap = sides[..., 0] * sides[..., 1]
    union = (area[:, None] + object_area[None] - overlap).clamp(min=EPS)
    hull_top_left = torch.min(boxes[:, None, :2], objects[None, :, :2])
    hull_bottom_right = torch.max(boxes[:, None, 2:], objects[None, :, 2:])
    hull_sides = (hull_bottom_right - hull_top_left).clamp(min=0)
    hull = (hull_sides[..., 0] * hull_sides[..., 1]).clamp(min=EPS)
    return -(overlap / union - (hull - union) / hull)
