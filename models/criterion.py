"""Losses of a detector's output: every decoder layer, the encoder's proposals, denoising queries, and aux."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from models.boxes import cxcywh_to_xyxy, generalized_iou, size_factor
from models.matching.hungarian import HungarianMatcher, MatchedPairs, MatchRequest, match
from models.structures import (
    AuxiliaryLoss,
    BoxDistance,
    DenoisingQueries,
    DetectorOutput,
    LayerPredictions,
    Target,
)

NORMALIZER_EPS = torch.finfo(torch.float32).eps


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
class BatchObjects:
    """The M objects of all images, image after image."""

    boxes: Tensor
    """(M, 4) cxcywh in [0, 1]"""
    labels: Tensor
    """(M,) classes to learn"""
    factors: Tensor
    """(B, 4) pixels of a normalised box, per image"""

    @classmethod
    def of(cls, targets: Sequence[Target], labels: Sequence[Tensor]) -> "BatchObjects":
        boxes = torch.cat([target.boxes for target in targets])
        return cls(boxes, torch.cat(list(labels)), torch.stack([size_factor(t.size, boxes) for t in targets]))


@dataclass(frozen=True)
class MatchedSet:
    """Predictions of some layers with their matched objects, the input of the losses."""

    prefix: str
    """Prefix of the loss names"""
    predictions: LayerPredictions
    """Their padding has no classification loss"""
    matches: MatchedPairs
    """Predictions with an object"""
    objects: BatchObjects
    """The objects that `matches.target` indexes"""
    negatives: Tensor
    """(layers, B) int64 on the host: predictions without an object that count in the normalizer"""


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

    def normalizers(self, matched: MatchedSet) -> Tensor:
        """(2, layers, B) float64 on the host: normalizer of the classification loss, and of the box losses."""
        positives = matched.matches.positives.double()
        return torch.stack([positives + self.no_object_weight * matched.negatives, positives])

    def __call__(self, matched: MatchedSet) -> dict[str, Tensor]:
        """-> class, box, giou: (layers, B) sums, not normalised."""
        at = (matched.matches.layer, matched.matches.image, matched.matches.query)
        true_boxes = matched.objects.boxes[matched.matches.target]
        factor = matched.objects.factors[matched.matches.image]
        boxes_unact = matched.predictions.boxes_unact[at]
        boxes = boxes_unact.sigmoid()
        distance = self.box_distance.aligned(boxes, true_boxes, boxes_unact)
        giou = generalized_iou(cxcywh_to_xyxy(boxes) * factor, cxcywh_to_xyxy(true_boxes) * factor)
        nothing = distance.new_zeros(matched.predictions.logits.shape[:3])
        return {
            "class": self.class_weight * self._class_loss(matched, at),
            "box": self.box_weight * nothing.index_put(at, distance).sum(-1),
            "giou": self.giou_weight * nothing.index_put(at, 1 - giou).sum(-1),
        }

    def _class_loss(self, matched: MatchedSet, at: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        logits = matched.predictions.logits
        true_labels = matched.objects.labels[matched.matches.target]
        if self.classification == "softmax":
            no_object = logits.shape[-1] - 1
            labels = torch.full(logits.shape[:3], no_object, device=logits.device).index_put(at, true_labels)
            class_weights = logits.new_ones(no_object + 1)
            class_weights[-1] = self.no_object_weight
            rows = F.cross_entropy(logits.flatten(0, 2), labels.flatten(), weight=class_weights, reduction="none")
            rows = rows.view(labels.shape)
        else:
            one_hot = torch.zeros_like(logits)
            one_hot[(*at, true_labels)] = 1
            rows = sigmoid_focal_loss(logits, one_hot, alpha=self.alpha, gamma=self.gamma)
        return rows.masked_fill(matched.predictions.padding_mask, 0.0).sum(-1)


class Criterion:
    """All losses of a batch; their plain sum is what training minimises.

    decoder, encoder     losses of the decoder layers (and denoising queries), and of the proposals
    encoder_tokens       all tokens, or the selected queries only
    class_agnostic       proposals learn "object" as class 0
    decoder_normalizer   batch: divided by the batch's counts; image: by each image's, then averaged. The batch is the
                         global one: the mean gradient of all ranks equals that of one process with all images
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
        losses: dict[str, Tensor] = {}
        with torch.autocast(output.num_queries.device.type, enabled=False):
            work = self.matched_sets(output, targets, self.match(output, targets))
            for (loss, matched), normalizer in zip(work, self._normalizers(work, len(targets)), strict=True):
                losses |= _by_layer(matched.prefix, loss(matched), normalizer)
            losses |= self.auxiliary(output, targets)
        return losses

    def auxiliary(self, output: DetectorOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
        """The losses of the query budget: they read its aux tensors and the size of the padded images."""
        aux = output.aux | {"padded_size": torch.tensor(output.padded_size)}
        losses: dict[str, Tensor] = {}
        for auxiliary_loss in self.auxiliary_losses:
            losses |= auxiliary_loss(aux, targets)
        return losses

    def match(self, output: DetectorOutput, targets: Sequence[Target]) -> list[MatchedPairs]:
        """Matched pairs of the decoder layers, and of the encoder. Raises NonFiniteCostError."""
        return match(self.match_requests(output, targets))

    def match_requests(self, output: DetectorOutput, targets: Sequence[Target]) -> list[MatchRequest]:
        """Requests for the decoder layers, and for the encoder's proposals."""
        requests = []
        for loss, predictions, labels in (
            (self.decoder, output.queries, [target.labels for target in targets]),
            (self.encoder, self.proposals(output), self._proposal_labels(targets)),
        ):
            logits, boxes = predictions.logits.detach(), predictions.boxes_unact.detach().sigmoid()
            requests.append(MatchRequest(loss.matcher, logits, boxes, predictions.counts, targets, labels))
        return requests

    def proposals(self, output: DetectorOutput) -> LayerPredictions:
        """The proposals that the encoder's loss reads."""
        return output.proposals if self.encoder_tokens == "all" else output.selected

    def _proposal_labels(self, targets: Sequence[Target]) -> list[Tensor]:
        labels = [target.labels for target in targets]
        return [torch.zeros_like(label) for label in labels] if self.class_agnostic else labels

    def matched_sets(
        self, output: DetectorOutput, targets: Sequence[Target], matches: Sequence[MatchedPairs]
    ) -> list[tuple[SetLoss, MatchedSet]]:
        """Input of each loss; matches as from `match`."""
        objects = BatchObjects.of(targets, [target.labels for target in targets])
        proposed = replace(objects, labels=torch.cat(self._proposal_labels(targets)))
        decoder, encoder = matches
        work = [
            (self.decoder, _matched_set("", output.queries, decoder, objects)),
            (self.encoder, _matched_set("encoder.", self.proposals(output), encoder, proposed)),
        ]
        if output.denoising is not None and output.denoising_queries is not None:
            denoising = _denoising_set(output.denoising, output.denoising_queries, targets, objects)
            work.append((self.decoder, denoising))
        return work

    def _normalizers(self, work: Sequence[tuple[SetLoss, MatchedSet]], images: int) -> Iterator[Tensor]:
        """Per set (2, layers, 1) for the whole batch, or (2, layers, B); the counts are at least one.

        The counts are summed over the process group and divided by its size: the mean of the ranks' gradients is then
        the gradient of the global batch.

        Differs from the reference, where every rank's normalizer is at least one.
        """
        device = work[0][1].predictions.logits.device
        counts = [loss.normalizers(matched) for loss, matched in work]
        own = torch.cat([torch.tensor([images]), *(count.sum(-1).flatten() for count in counts)])
        totals, processes = _sum_over_processes(own.float().to(device, non_blocking=True))
        of_sets = totals[1:].split([count[..., 0].numel() for count in counts])
        for (loss, _), count, total in zip(work, counts, of_sets, strict=True):
            if loss is self.decoder and self.decoder_normalizer == "image":
                share = totals[0] / (images * processes)  # the mean below is over the images of this rank
                yield (count.float().to(device, non_blocking=True).clamp(min=1) + NORMALIZER_EPS) * share
            else:
                yield (total.view(*count.shape[:2], 1).clamp(min=1) + NORMALIZER_EPS) / processes


def _by_layer(prefix: str, sums: dict[str, Tensor], normalizers: Tensor) -> dict[str, Tensor]:
    """(layers, B) sums -> scalars per layer; the last layer's names have no layer prefix."""
    of_classes, of_boxes = normalizers
    means = {}
    for kind, values in sums.items():
        normalizer = of_classes if kind == "class" else of_boxes
        values = values if normalizer.shape == values.shape else values.sum(1, keepdim=True)
        means[kind] = (values / normalizer).mean(1).unbind()
    last = len(normalizers[0]) - 1
    names = [prefix if layer == last else f"{prefix}layer{layer}." for layer in range(last + 1)]
    return {f"{name}{kind}": mean[layer] for layer, name in enumerate(names) for kind, mean in means.items()}


def _matched_set(
    prefix: str, predictions: LayerPredictions, matches: MatchedPairs, objects: BatchObjects
) -> MatchedSet:
    negatives = torch.tensor(predictions.counts) - matches.positives
    return MatchedSet(prefix, predictions, matches, objects, negatives)


def _denoising_set(
    predictions: LayerPredictions, queries: DenoisingQueries, targets: Sequence[Target], objects: BatchObjects
) -> MatchedSet:
    """Denoising queries know their objects: the positive slots. Empty slots learn "no object" (published)."""
    device = objects.boxes.device
    layers, first = len(predictions.logits), 0
    groups = torch.arange(queries.num_groups, device=device)[:, None] * queries.group_size
    images, slots, rows = [], [], []
    for number, (target, noised) in enumerate(zip(targets, queries.objects, strict=True)):
        slots.append((groups + torch.arange(len(noised), device=device)).flatten())
        rows.append(noised.repeat(queries.num_groups) + first)
        images.append(torch.full_like(rows[-1], number))
        first += len(target.labels)
    image, query, row = (torch.cat(part).repeat(layers) for part in (images, slots, rows))
    pairs = torch.tensor([len(slot) for slot in slots]).expand(layers, -1)
    layer = torch.arange(layers, device=device)[:, None].expand(-1, len(row) // layers).flatten()
    shown = replace(predictions, padding_mask=torch.zeros_like(predictions.padding_mask))
    return MatchedSet("denoising.", shown, MatchedPairs(layer, image, query, row, pairs), objects, negatives=pairs)


def _sum_over_processes(values: Tensor) -> tuple[Tensor, int]:
    """Sum over the process group, and the number of ranks; the shape must be the same on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return values, 1
    dist.all_reduce(values)
    return values, dist.get_world_size()
