"""Decoding in evaluation: images of a batch that need very different numbers of queries are decoded apart."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.decoder import Memory
from models.proposals import query_blocks
from models.structures import SelectedProposals

SIMILAR = 2.0
"""Images are decoded together where the first has at most so many times the queries of the others"""


def similar_counts(counts: Sequence[int]) -> list[list[int]]:
    """Images in groups of similar query counts, falling."""
    groups: list[list[int]] = []
    for image in sorted(range(len(counts)), key=lambda i: -counts[i]):
        if not groups or counts[groups[-1][0]] > SIMILAR * counts[image]:
            groups.append([])
        groups[-1].append(image)
    return groups


def decode_in_groups(
    decoder: nn.Module, queries: Sequence[Tensor], memory: Memory, selected: SelectedProposals
) -> tuple[Tensor, Tensor]:
    """The decoder's predictions, zero in the padding of a group of fewer queries: padding costs what queries cost.

    queries    what the decoder takes before the memory, each (B, Q, ...)
    selected   their padding and counts
    """
    padding_mask, counts = selected.padding_mask, selected.counts
    groups = similar_counts(counts)
    if len(groups) == 1:
        return decoder(*queries, memory, query_blocks(padding_mask, counts))
    device, width = padding_mask.device, padding_mask.shape[1]
    logits: list[Tensor] = []
    boxes_unact: list[Tensor] = []
    for group in groups:
        most = counts[group[0]]
        images = torch.tensor(group).to(device, non_blocking=True)
        blocks = query_blocks(padding_mask[images, :most], [counts[image] for image in group])
        found = decoder(*(rows[images, :most] for rows in queries), memory.of(images), blocks)
        for parts, part in zip((logits, boxes_unact), found, strict=True):
            parts.append(F.pad(part, (0, 0, 0, width - most)))
    order = torch.tensor([image for group in groups for image in group]).argsort().to(device, non_blocking=True)
    return torch.cat(logits, dim=1)[:, order], torch.cat(boxes_unact, dim=1)[:, order]
