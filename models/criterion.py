"""Losses of a detector's output: every decoder layer, the encoder's proposals, denoising queries, and aux."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from models.boxes import cxcywh_to_xyxy, generalized_iou, size_factor
from models.matcher import Assignment, HungarianMatcher
from models.structures import (
    AuxiliaryLoss,
    BoxDistance,
    DenoisingQueries,
    DetectorOutput,
    LayerPredictions,
    Target,
)

NORMALISER_EPS = torch.finfo(torch.float32).eps


def sigmoid_focal_loss(logits: Tensor, one_hot: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """(..., K) logits and 0/1 targets -> (...): focal loss summed over the classes.

    Source: Lin et al., Focal Loss for Dense Object Detection, ICCV 2017.
    """
    probability = logits.sigmoid()
    miss = (1 - probability) * one_hot + probability * (1 - one_hot)
    share = alpha * one_hot + (1 - alpha) * (1 - one_hot)
    entropy = F.binary_cross_entropy_with_logits(logits, one_hot, reduction="none")
    return (entropy * share * miss**gamma).sum(-1)


@dataclass(frozen=True)
class MatchedSet:
    """One layer's predictions with their assignments: what the losses are computed of."""

    name: str
    """Prefix of the loss names"""
    logits: Tensor
    """(B, Q, K)"""
    boxes_unact: Tensor
    """(B, Q, 4) logits"""
    padding_mask: Tensor
    """(B, Q) bool; no classification loss there"""
    assignments: Sequence[Assignment]
    """One per image"""
    targets: Sequence[Target]
    """One per image"""
    labels: Sequence[Tensor]
    """Per image (N,): classes to learn"""
    num_negatives: int
    """Unmatched predictions that count in the normaliser"""

    @property
    def num_positives(self) -> int:
        return sum(len(assignment.query) for assignment in self.assignments)


class SetLoss:
    """Classification, box and GIoU loss of a matched set.

    classification   softmax: cross-entropy with "no object" as last class; focal: sigmoid focal loss
    the weights are factors of the three losses; alpha and gamma belong to focal, no_object_weight to softmax
    """

    def __init__(
        self,
        *,
        classification: Literal["softmax", "focal"],
        class_weight: float,
        box_weight: float,
        giou_weight: float,
        no_object_weight: float,
        alpha: float,
        gamma: float,
        box_distance: BoxDistance,
        matcher: HungarianMatcher,
    ) -> None:
        self.classification = classification
        self.class_weight = class_weight
        self.box_weight = box_weight
        self.giou_weight = giou_weight
        self.no_object_weight = no_object_weight if classification == "softmax" else 0.0
        self.alpha = alpha
        self.gamma = gamma
        self.box_distance = box_distance
        self.matcher = matcher

    def match(
        self, logits: Tensor, boxes: Tensor, padding_mask: Tensor, targets: Sequence[Target], labels: Sequence[Tensor]
    ) -> list[Assignment]:
        """(B, Q, K), (B, Q, 4), (B, Q) -> one assignment per image; padding rows are never matched."""
        counts = (~padding_mask).sum(1).tolist()  # sync
        return [
            self.matcher(logits[i, :count], boxes[i, :count], target, label)
            for i, (count, target, label) in enumerate(zip(counts, targets, labels, strict=True))
        ]

    def normalisers(self, matched: MatchedSet) -> tuple[float, float]:
        """Of the classification loss, and of the box losses."""
        positives = matched.num_positives
        return positives + self.no_object_weight * matched.num_negatives, positives

    def __call__(self, matched: MatchedSet, normalisers: Tensor) -> dict[str, Tensor]:
        """-> {name + "class" | "box" | "giou"}: scalars."""
        class_normaliser, box_normaliser = normalisers.clamp(min=1) + NORMALISER_EPS
        image = torch.cat([torch.full_like(a.query, i) for i, a in enumerate(matched.assignments)])
        query = torch.cat([a.query for a in matched.assignments])
        pairs = list(zip(matched.assignments, matched.targets, strict=True))
        true_boxes = torch.cat([target.boxes[a.target] for a, target in pairs])
        factor = torch.stack([size_factor(target.size, true_boxes) for _, target in pairs])[image]
        true_labels = torch.cat([label[a.target] for a, label in zip(matched.assignments, matched.labels, strict=True)])

        class_loss = self._class_loss(matched, image, query, true_labels)
        boxes_unact = matched.boxes_unact[image, query]
        boxes = boxes_unact.sigmoid()
        distance = self.box_distance.aligned(boxes, true_boxes, boxes_unact)
        giou = generalized_iou(cxcywh_to_xyxy(boxes) * factor, cxcywh_to_xyxy(true_boxes) * factor)
        return {
            f"{matched.name}class": self.class_weight * class_loss / class_normaliser,
            f"{matched.name}box": self.box_weight * distance.sum() / box_normaliser,
            f"{matched.name}giou": self.giou_weight * (1 - giou).sum() / box_normaliser,
        }

    def _class_loss(self, matched: MatchedSet, image: Tensor, query: Tensor, true_labels: Tensor) -> Tensor:
        logits = matched.logits
        if self.classification == "softmax":
            no_object = logits.shape[-1] - 1
            labels = torch.full(logits.shape[:2], no_object, device=logits.device)
            labels[image, query] = true_labels
            class_weights = logits.new_ones(no_object + 1)
            class_weights[-1] = self.no_object_weight
            rows = F.cross_entropy(logits.transpose(1, 2), labels, weight=class_weights, reduction="none")
        else:
            one_hot = torch.zeros_like(logits)
            one_hot[image, query, true_labels] = 1
            rows = sigmoid_focal_loss(logits, one_hot, alpha=self.alpha, gamma=self.gamma)
        return rows.masked_fill(matched.padding_mask, 0.0).sum()


class Criterion:
    """All losses of a batch; their plain sum is what training minimises.

    decoder, encoder     losses of the decoder layers (and denoising queries), and of the proposals
    encoder_tokens       all tokens, or the selected queries only
    class_agnostic       proposals learn "object" as class 0
    decoder_normalizer   batch: divided by the batch's counts; image: by each image's, then averaged
    auxiliary_losses     read the aux tensors of the query budget
    """

    def __init__(
        self,
        *,
        decoder: SetLoss,
        encoder: SetLoss,
        encoder_tokens: Literal["all", "selected"],
        class_agnostic: bool,
        decoder_normalizer: Literal["batch", "image"],
        auxiliary_losses: Sequence[AuxiliaryLoss],
    ) -> None:
        self.decoder = decoder
        self.encoder = encoder
        self.encoder_tokens = encoder_tokens
        self.class_agnostic = class_agnostic
        self.decoder_normalizer = decoder_normalizer
        self.auxiliary_losses = auxiliary_losses

    def __call__(self, output: DetectorOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
        """-> named scalars: class, box, giou (last layer), layer0.class, ..., encoder.class, denoising.class, ...

        Everything is float32, autocast or not. Raises NonFiniteCostError.
        """
        boxes_unact = output.queries.boxes_unact
        with torch.autocast(boxes_unact.device.type, enabled=False):
            work = self._matched_sets(output, targets)
            normalisers = _mean_over_processes(
                boxes_unact.new_tensor([loss.normalisers(matched) for loss, matched in work])
            )
            losses: dict[str, Tensor] = {}
            for (loss, matched), normaliser in zip(work, normalisers, strict=True):
                share = 1 / len(targets) if self._per_image(loss) else 1.0
                for name, value in loss(matched, normaliser).items():
                    losses[name] = losses.get(name, 0.0) + share * value
            for auxiliary_loss in self.auxiliary_losses:
                losses |= auxiliary_loss(output.aux, targets)
        return losses

    def _per_image(self, loss: SetLoss) -> bool:
        return loss is self.decoder and self.decoder_normalizer == "image"

    def _matched_sets(self, output: DetectorOutput, targets: Sequence[Target]) -> list[tuple[SetLoss, MatchedSet]]:
        true_labels = [target.labels for target in targets]
        work = [
            (self.decoder, part)
            for matched in self._match(self.decoder, output.queries, targets, true_labels, prefix="")
            for part in (_split_images(matched) if self.decoder_normalizer == "image" else [matched])
        ]
        labels = [torch.zeros_like(label) for label in true_labels] if self.class_agnostic else true_labels
        proposals = output.proposals if self.encoder_tokens == "all" else output.selected
        sets = self._match(self.encoder, proposals, targets, labels, prefix="encoder.")
        work += [(self.encoder, matched) for matched in sets]
        if output.denoising is not None and output.denoising_queries is not None:
            sets = _denoising_sets(output.denoising, output.denoising_queries, targets)
            work += [(self.decoder, matched) for matched in sets]
        return work

    @staticmethod
    def _match(
        loss: SetLoss,
        predictions: LayerPredictions,
        targets: Sequence[Target],
        labels: Sequence[Tensor],
        *,
        prefix: str,
    ) -> list[MatchedSet]:
        mask = predictions.padding_mask
        sets = []
        for name, logits, boxes_unact in _layers(predictions, prefix):
            assignments = loss.match(logits.detach(), boxes_unact.detach().sigmoid(), mask, targets, labels)
            matched = sum(len(assignment.query) for assignment in assignments)
            negatives = int((~mask).sum()) - matched  # sync
            sets.append(MatchedSet(name, logits, boxes_unact, mask, assignments, targets, labels, negatives))
        return sets


def _layers(predictions: LayerPredictions, prefix: str) -> list[tuple[str, Tensor, Tensor]]:
    """(name, class logits, box logits) per layer; the last layer has no name of its own."""
    last = len(predictions.logits) - 1
    return [
        (prefix if i == last else f"{prefix}layer{i}.", logits, boxes_unact)
        for i, (logits, boxes_unact) in enumerate(zip(predictions.logits, predictions.boxes_unact, strict=True))
    ]


def _split_images(matched: MatchedSet) -> list[MatchedSet]:
    """One set per image."""
    parts = []
    for i, assignment in enumerate(matched.assignments):
        image = slice(i, i + 1)
        mask = matched.padding_mask[image]
        parts.append(
            replace(
                matched,
                logits=matched.logits[image],
                boxes_unact=matched.boxes_unact[image],
                padding_mask=mask,
                assignments=[assignment],
                targets=matched.targets[image],
                labels=matched.labels[image],
                num_negatives=int((~mask).sum()) - len(assignment.query),  # sync
            )
        )
    return parts


def _denoising_sets(
    predictions: LayerPredictions, queries: DenoisingQueries, targets: Sequence[Target]
) -> list[MatchedSet]:
    """Denoising queries know their objects: the positive slots. Empty slots learn "no object" (published)."""
    device = predictions.boxes_unact.device
    groups = torch.arange(queries.num_groups, device=device)[:, None] * queries.group_size
    assignments = []
    for objects in queries.objects:
        slots = groups + torch.arange(len(objects), device=device)
        assignments.append(Assignment(slots.flatten(), objects.repeat(queries.num_groups)))
    labels = [target.labels for target in targets]
    negatives = sum(len(assignment.query) for assignment in assignments)
    nothing_padded = torch.zeros_like(predictions.padding_mask)
    return [
        MatchedSet(name, logits, boxes_unact, nothing_padded, assignments, targets, labels, negatives)
        for name, logits, boxes_unact in _layers(predictions, "denoising.")
    ]


def _mean_over_processes(values: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return values
