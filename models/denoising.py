"""Contrastive denoising: noised objects as additional queries in training.

Source: Zhang et al., DINO, ICLR 2023, with the published code's noise, layout and mask.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.attention import QueryBlocks, blocking_bias
from models.boxes import cxcywh_to_xyxy, inverse_sigmoid, xyxy_to_cxcywh
from models.structures import DenoisingQueries, Target

REFERENCE_EPS = 1e-3


@dataclass(frozen=True)
class NoiseDraws:
    """The random numbers of one batch, in the order of drawing; T = 2 * groups * objects of the batch."""

    label_flip: Tensor
    """(T,) uniform in [0, 1)"""
    new_labels: Tensor
    """(F,) int64, one per flipped label"""
    sign: Tensor
    """(T, 4) 0 or 1"""
    shift: Tensor
    """(T, 4) uniform in [0, 1)"""


class Denoising(nn.Module):
    """Makes the denoising queries of a batch.

    num_queries   intended number of positive queries; groups = max(1, num_queries // most objects of an image)
    label_noise   a label is redrawn with probability label_noise / 2
    box_noise     corner shift in half box sides; negatives are shifted by one to two of it
    max_queries   limit of an image's queries, positive and negative together: of more objects, a random subset is
                  noised. None: no limit (published)
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_classes: int,
        num_queries: int,
        label_noise: float,
        box_noise: float,
        max_queries: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.label_noise = label_noise
        self.box_noise = box_noise
        self.max_queries = max_queries
        self.label_embedding = nn.Embedding(num_classes, hidden_dim)

    def forward(self, targets: Sequence[Target], draws: NoiseDraws | None = None) -> DenoisingQueries:
        """One target per image; `draws` replaces the random numbers (tests)."""
        objects = [self._choose(target) for target in targets]
        counts = [len(chosen) for chosen in objects]
        most = max(counts, default=0)
        positives = self.num_queries if self.max_queries is None else min(self.num_queries, self.max_queries // 2)
        groups = max(1, positives // most) if most else 1  # G
        # Group by group: the positives of all images, then their negatives. T = 2 * G * objects of the batch.
        pairs = list(zip(targets, objects, strict=True))
        labels = torch.cat([target.labels[chosen] for target, chosen in pairs]).repeat(2 * groups)  # (T,)
        boxes = torch.cat([target.boxes[chosen] for target, chosen in pairs]).repeat(2 * groups, 1)  # (T, 4)
        total = sum(counts)
        negative = torch.arange(len(labels), device=labels.device) // max(total, 1) % 2 == 1  # (T,)
        draws = draws or self._draw(labels, boxes)
        content = self.label_embedding(self._flip(labels, draws))  # (T, D)
        boxes_unact = inverse_sigmoid(self._shift(boxes, negative, draws), eps=REFERENCE_EPS)  # (T, 4)

        slots = 2 * most * groups
        index = self._slot_index(counts, most, groups, labels.device)  # (T,)
        images = [torch.full((count,), i, device=labels.device) for i, count in enumerate(counts)]
        image = torch.cat(images).repeat(2 * groups)  # (T,)
        padded_content = content.new_zeros(len(targets), slots, content.shape[-1])  # (B, G*2N, D)
        padded_boxes = boxes_unact.new_zeros(len(targets), slots, 4)  # (B, G*2N, 4)
        padding_mask = torch.ones(len(targets), slots, dtype=torch.bool, device=labels.device)  # (B, G*2N)
        padding_mask[image, index] = False
        return DenoisingQueries(
            content=padded_content.index_put((image, index), content),
            boxes_unact=padded_boxes.index_put((image, index), boxes_unact),
            num_groups=groups,
            group_size=2 * most,
            padding_mask=padding_mask,
            objects=objects,
        )

    def _choose(self, target: Target) -> Tensor:
        """(n,) rows of the target's objects that are noised."""
        count, device = len(target.labels), target.labels.device
        if self.max_queries is None or 2 * count <= self.max_queries:
            return torch.arange(count, device=device)
        return torch.randperm(count, device=device)[: self.max_queries // 2].sort().values

    def _draw(self, labels: Tensor, boxes: Tensor) -> NoiseDraws:
        label_flip = torch.rand_like(labels, dtype=torch.float32)
        flipped = int((label_flip < self.label_noise * 0.5).sum())  # sync
        return NoiseDraws(
            label_flip=label_flip,
            new_labels=torch.randint(0, self.num_classes, (flipped,), device=labels.device),
            sign=torch.randint_like(boxes, 0, 2),
            shift=torch.rand_like(boxes),
        )

    def _flip(self, labels: Tensor, draws: NoiseDraws) -> Tensor:
        if len(draws.new_labels) == 0:
            return labels
        flipped = draws.label_flip < self.label_noise * 0.5
        number = flipped.cumsum(0) - 1  # (T,) index into new_labels
        return torch.where(flipped, draws.new_labels[number.clamp(min=0)], labels)

    def _shift(self, boxes: Tensor, negative: Tensor, draws: NoiseDraws) -> Tensor:
        """Corners move by up to half a side (positives), or by half a side to a whole one (negatives)."""
        part = (draws.shift + negative[:, None]) * (draws.sign * 2 - 1)  # (T, 4)
        half_side = boxes[:, 2:].repeat(1, 2) / 2  # (T, 4) w, h, w, h
        corners = cxcywh_to_xyxy(boxes) + part * half_side * self.box_noise  # (T, 4) xyxy
        return xyxy_to_cxcywh(corners.clamp(0, 1))

    @staticmethod
    def _slot_index(counts: Sequence[int], most: int, groups: int, device: torch.device) -> Tensor:
        """Slot of each query in its image: (group, positive or negative, object) with `most` slots per part."""
        objects = torch.cat([torch.arange(count, device=device) for count in counts])
        parts = torch.arange(2 * groups, device=device)[:, None] * most  # (2G, 1)
        return (parts + objects).flatten()


def denoising_blocks(
    denoising: DenoisingQueries, query_padding_mask: Tensor, behind: QueryBlocks, *, mask_padding: bool
) -> QueryBlocks:
    """Attention bias of denoising queries in front of matching queries; padding is blocked for all of them.

    query_padding_mask   (B, Q)
    behind               bias of the matching queries among themselves
    mask_padding         see `denoising_mask`
    """
    front = denoising.content.shape[1]
    bias = None
    if denoising.num_groups > 1 or (mask_padding and len(query_padding_mask) > 1):
        blocked = denoising_mask(denoising, query_padding_mask.shape[1], mask_padding=mask_padding)  # (1|B, F, F+Q)
        bias = blocking_bias(blocked | nn.functional.pad(query_padding_mask, (front, 0))[:, None])  # (B, 1, F, F+Q)
    elif behind.bias is not None:
        bias = nn.functional.pad(behind.bias, (front, 0))  # (B, 1, 1, F+Q)
    return QueryBlocks(front=front, front_bias=bias, bias=behind.bias)


def denoising_mask(denoising: DenoisingQueries, num_matching: int, *, mask_padding: bool) -> Tensor:
    """Attention mask of the denoising queries; the keys are denoising queries first, then the matching ones.

    mask_padding   also hide empty denoising slots (the published code shows them)
    returns        (1|B, F, F+Q) bool, True = blocked: a group is blocked for the other groups; all denoising queries
                   attend to the matching queries (published), not the reverse
    """
    front, device = denoising.content.shape[1], denoising.content.device
    group = torch.arange(front, device=device) // max(denoising.group_size, 1)  # (F,)
    mask = nn.functional.pad(group[:, None] != group, (0, num_matching))  # (F, F+Q)
    if not mask_padding:
        return mask[None]
    hidden = nn.functional.pad(denoising.padding_mask, (0, num_matching))  # (B, F+Q)
    itself = torch.eye(front, front + num_matching, dtype=torch.bool, device=device)
    return (mask | hidden[:, None]) & ~itself
