"""Runs of this project's detectors on recorded inputs: evaluation, and one training step."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

from configs.schema import Config
from models.build import build_criterion, build_postprocess
from models.denoising import NoiseDraws
from models.matching.cost import ImageCosts, MatchingCost
from models.matching.hungarian import MatchedPairs, MatchRequest, match
from models.proposals import anchor_boxes_unact, select_queries
from models.structures import DenoisingQueries, Detections, DetectorOutput, ProposalSet
from tests.reference.goldens import Golden, GoldenTarget, config_of, detector_of, load_golden, padding_of


@dataclass(frozen=True)
class Evaluation:
    """Everything that the goldens record of an inference."""

    levels: list[Tensor]
    memory: Tensor
    anchors_unact: Tensor
    proposals: ProposalSet
    selected: Tensor
    output: DetectorOutput
    detections: list[Detections]


@dataclass(frozen=True)
class Matching:
    """Costs and pairs of one image in one layer."""

    cost: Tensor
    """(Q, N)"""
    query: Tensor
    """(n,) rows"""
    target: Tensor
    """(n,) columns"""

    def vector(self) -> Tensor:
        """(Q,) matched object + 1, or 0 if unmatched: the recorded form."""
        matched = torch.zeros(len(self.cost), dtype=torch.int64)
        matched[self.query] = self.target + 1
        return matched

    def total(self, vector: Tensor) -> float:
        """Summed cost of an assignment in the recorded form."""
        rows = vector.nonzero().flatten()
        return float(self.cost[rows, vector[rows] - 1].double().sum())


@dataclass(frozen=True)
class Training:
    """A training step of the recorded batch."""

    output: DetectorOutput
    losses: dict[str, Tensor]
    decoder_matchings: list[Matching]
    """Layer by layer, images inside"""
    encoder_matchings: list[Matching]
    """One per image"""
    gradients: dict[str, Tensor]


def matchings_of(request: MatchRequest, matches: MatchedPairs) -> list[Matching]:
    """What was matched with what at which cost: layer by layer, images inside."""
    first = [0, *accumulate(len(labels) for labels in request.labels)]
    found = []
    for layer, image in product(range(len(request.logits)), range(len(request.targets))):
        count, target, labels = request.counts[image], request.targets[image], request.labels[image]
        logits, boxes = request.logits[layer, image, :count], request.boxes[layer, image, :count]
        here = (matches.layer == layer) & (matches.image == image)
        cost = matching_cost(request.matcher.cost, logits, boxes, target, labels)
        found.append(Matching(cost, matches.query[here], matches.target[here] - first[image]))
    return found


@torch.no_grad()
def matching_cost(cost: MatchingCost, logits: Tensor, boxes: Tensor, target: GoldenTarget, labels: Tensor) -> Tensor:
    """(Q, N) cost of each pair, as the matcher sees it."""
    return ImageCosts(cost, logits[None], boxes[None], target, labels).of(torch.arange(len(labels)))[:, 0].T


def image_sizes(golden: Golden) -> list[tuple[int, int]]:
    return [tuple(golden[f"in/img_shape/{i}"].tolist()) for i in range(golden.count("in/img_shape/{}"))]


def recorded_targets(golden: Golden, *, without: tuple[int, ...] = ()) -> list[GoldenTarget]:
    """Objects of every image; the images in `without` lose theirs."""
    targets = []
    for i, size in enumerate(image_sizes(golden)):
        keep = slice(0 if i in without else None)
        targets.append(GoldenTarget(golden[f"gt/{i}/boxes"][keep], golden[f"gt/{i}/labels"][keep], size))
    return targets


def recorded_noise(golden: Golden, prefix: str) -> NoiseDraws | None:
    if f"{prefix}noise_label_p" not in golden:
        return None
    return NoiseDraws(*(golden[f"{prefix}noise_{name}"] for name in ("label_p", "new_labels", "sign01", "part")))


@functools.cache
def detector_for(path: Path) -> tuple[Config, nn.Module]:
    """The recorded model with its recorded weights, one per file; nobody changes its weights."""
    golden = load_golden(path)
    config = config_of(golden.meta)
    return config, detector_of(golden, config)


@functools.cache
def evaluate(path: Path, *, unpadded: bool) -> Evaluation:
    """Inference of the whole batch, or of its first image cut to its own size."""
    golden = load_golden(path)
    config, detector = detector_for(path)
    images, sizes = golden["in/images"], image_sizes(golden)
    if unpadded:
        images, sizes = images[:1, :, : sizes[0][0], : sizes[0][1]], sizes[:1]
    seen: dict[str, Any] = {}
    hooks = [
        detector.get_submodule(name).register_forward_hook(functools.partial(_keep, seen, name))
        for name in ("neck", "tokenizer", "encoder", "proposal_head")
    ]
    with torch.no_grad():
        output = detector.eval()(images, padding_of(images, sizes))
    for hook in hooks:
        hook.remove()
    originals = []
    for i, (height, width) in enumerate(sizes):
        scale_width, scale_height = golden[f"in/scale_factor/{i}"].tolist()
        originals.append((height / scale_height, width / scale_width))
    proposals = seen["proposal_head"]
    return Evaluation(
        levels=seen["neck"],
        memory=seen["encoder"],
        anchors_unact=anchor_boxes_unact(seen["tokenizer"]),
        proposals=proposals,
        selected=select_queries(proposals, output.num_queries, class_agnostic=detector.class_agnostic).index,
        output=output,
        detections=build_postprocess(config)(output, sizes, originals),
    )


def _keep(seen: dict[str, Any], name: str, module: nn.Module, arguments: tuple[Any, ...], result: object) -> None:
    seen[name] = result


def train_step(path: Path, *, without: tuple[int, ...] = (), seed: int | None = None) -> Training:
    """Losses and gradients of the recorded batch, with the recorded denoising draws or, with a seed, fresh ones."""
    golden = load_golden(path)
    config, detector = detector_for(path)
    targets = recorded_targets(golden, without=without)
    noise = None if seed is not None or without else recorded_noise(golden, "train/dn/")
    if seed is not None:
        torch.manual_seed(seed)
    output = forward(detector.train(), golden["in/images"], targets, noise)
    criterion = build_criterion(config)
    matchings: list[list[Matching]] = []

    def recording_match(requests: Sequence[MatchRequest]) -> list[MatchedPairs]:
        matches = match(requests)
        matchings.extend(map(matchings_of, requests, matches))
        return matches

    with patch("models.criterion.match", recording_match):
        losses = criterion(output, targets)
    detector.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad.clone() for name, p in detector.named_parameters() if p.grad is not None}
    return Training(
        output=replace(output, aux={name: value.detach() for name, value in output.aux.items()}),
        losses={name: value.detach() for name, value in losses.items()},
        decoder_matchings=matchings[0],
        encoder_matchings=matchings[1],
        gradients=gradients,
    )


@functools.cache
def recorded_train_step(path: Path) -> Training:
    return train_step(path)


def forward(
    detector: nn.Module, images: Tensor, targets: list[GoldenTarget], noise: NoiseDraws | None
) -> DetectorOutput:
    padding_mask = padding_of(images, [target.size for target in targets])
    return detector(images, padding_mask, targets, *([] if noise is None else [noise]))


def loss_name(published: str, num_layers: int) -> str:
    """Name here of a published loss: the last layer carries no layer name, whatever index it was given."""
    parts = {"cls": "class", "bbox": "box", "iou": "giou"}
    if published == "loss_densitymap":
        return "density"
    found = re.fullmatch(r"(?:d(\d+)\.)?(enc_|dn_)?loss_(cls|bbox|iou)", published)
    assert found, f"unknown published loss {published}"
    layer = "" if found[1] is None or int(found[1]) == num_layers - 1 else f"layer{found[1]}."
    return {None: "", "enc_": "encoder.", "dn_": "denoising."}[found[2]] + layer + parts[found[3]]


def queries_of(denoising: DenoisingQueries | None) -> DenoisingQueries:
    assert denoising is not None
    return denoising
