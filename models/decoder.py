"""Queries x memory -> hidden states and refined boxes, layer by layer."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import LayerSizes, QueryBlocks, RowWise, SelfAttention, call
from models.boxes import inverse_sigmoid
from models.position_encoding import encode_boxes
from models.proposals import BoxHead, query_blocks
from models.structures import Memory, SelectedProposals

BOX_EPS = 1e-5
DINO_REFERENCE_EPS = 1e-3
SIMILAR = 2.0
"""Images are decoded together if their query counts differ by at most this factor"""


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward; residual and LayerNorm behind each."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        hidden_dim = sizes.hidden_dim
        self.self_attention = SelfAttention(hidden_dim=hidden_dim, num_heads=sizes.num_heads, dropout=sizes.dropout)
        self.self_norm = nn.LayerNorm(hidden_dim)
        self.cross_attention = sizes.deformable_attention()
        self.cross_norm = nn.LayerNorm(hidden_dim)
        self.ffn = sizes.feed_forward()
        self.ffn_norm = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(sizes.dropout)
        self.recompute_ffn = sizes.recompute_ffn

    def forward(self, queries: Tensor, position: Tensor, boxes: Tensor, memory: Memory, blocks: QueryBlocks) -> Tensor:
        """(B, Q, D), (B, Q, D), boxes (B, Q, 4) -> (B, Q, D)."""
        attended = self.self_attention(queries, position, blocks)
        queries = self.self_norm(queries + self.dropout(attended))
        attended = self.cross_attention(
            queries + position,
            memory.references(boxes),
            memory.tokens,
            memory.features.padding_mask,
            memory.features.spatial_shapes,
        )
        queries = self.cross_norm(queries + self.dropout(attended))
        return self.ffn_norm(queries + self.dropout(call(self.ffn, queries, recompute=self.recompute_ffn)))


class PredictionHeads(nn.Module):
    """A classifier and a box head per decoder layer, not shared."""

    def __init__(self, *, hidden_dim: int, num_layers: int, num_logits: int) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(nn.Linear(hidden_dim, num_logits) for _ in range(num_layers))
        self.box_heads = nn.ModuleList(BoxHead(hidden_dim) for _ in range(num_layers))


class DinoDecoder(nn.Module):
    """DINO: the position is recomputed from the boxes in every layer; boxes look forward twice.

    The box head runs twice per layer: on the plain hidden state for the next layer's boxes, and on the normed one
    for the output, with two epsilons (published). The output of layer l starts from the undetached boxes of layer
    l-1, so that its loss reaches them.

    recompute   recompute the layers in the backward pass, see `models.attention.call`

    Source: Zhang et al., DINO, ICLR 2023.
    """

    def __init__(
        self, *, layers: Sequence[DecoderLayer], heads: PredictionHeads, hidden_dim: int, recompute: bool
    ) -> None:
        super().__init__()
        self.recompute = recompute
        self.layers = nn.ModuleList(layers)
        self.heads = heads
        self.norm = nn.LayerNorm(hidden_dim)
        self.position_head = RowWise(
            nn.Linear(2 * hidden_dim, hidden_dim), nn.ReLU(inplace=True), nn.Linear(hidden_dim, hidden_dim)
        )
        self.features_per_coordinate = hidden_dim // 2

    def forward(self, content: Tensor, boxes: Tensor, memory: Memory, blocks: QueryBlocks) -> tuple[Tensor, Tensor]:
        """Content (B, Q, D), boxes (B, Q, 4) in [0, 1] -> class and box logits, (layers, B, Q, K) and (..., 4)."""
        queries = content
        looked_forward = boxes
        logits, outputs = [], []
        for layer, classifier, box_head in zip(self.layers, self.heads.classifiers, self.heads.box_heads, strict=True):
            encoding = encode_boxes(
                memory.references(boxes)[:, :, 0], features=self.features_per_coordinate, order=(1, 0, 2, 3)
            )  # (B, Q, 2D)
            position = self.position_head(encoding)  # (B, Q, D)
            queries = call(layer, queries, position, boxes, memory, blocks, recompute=self.recompute)
            hidden = self.norm(queries)
            logits.append(classifier(hidden))
            outputs.append(box_head(hidden) + inverse_sigmoid(looked_forward, BOX_EPS))
            looked_forward = (box_head(queries) + inverse_sigmoid(boxes, DINO_REFERENCE_EPS)).sigmoid()
            boxes = looked_forward.detach()
        return torch.stack(logits).float(), torch.stack(outputs)


class DeformableDecoder(nn.Module):
    """Deformable DETR: one position for all layers; each layer's boxes are the next one's references, detached.

    recompute   recompute the layers in the backward pass, see `models.attention.call`

    Source: Zhu et al., Deformable DETR, ICLR 2021, iterative box refinement.
    """

    def __init__(self, *, layers: Sequence[DecoderLayer], heads: PredictionHeads, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.layers = nn.ModuleList(layers)
        self.heads = heads

    def forward(
        self, content: Tensor, position: Tensor, boxes: Tensor, memory: Memory, blocks: QueryBlocks
    ) -> tuple[Tensor, Tensor]:
        """Content and position (B, Q, D), boxes (B, Q, 4) in [0, 1] -> class and box logits of all layers."""
        queries = content
        logits, outputs = [], []
        for layer, classifier, box_head in zip(self.layers, self.heads.classifiers, self.heads.box_heads, strict=True):
            queries = call(layer, queries, position, boxes, memory, blocks, recompute=self.recompute)
            logits.append(classifier(queries))
            outputs.append(box_head(queries) + inverse_sigmoid(boxes, BOX_EPS))
            boxes = outputs[-1].detach().sigmoid()
        return torch.stack(logits).float(), torch.stack(outputs)


def similar_counts(counts: Sequence[int]) -> list[list[int]]:
    """Indices of the images in groups of similar query counts, in descending order."""
    groups: list[list[int]] = []
    for image in sorted(range(len(counts)), key=lambda i: -counts[i]):
        if not groups or counts[groups[-1][0]] > SIMILAR * counts[image]:
            groups.append([])
        groups[-1].append(image)
    return groups


def decode_in_groups(
    decoder: nn.Module, queries: Sequence[Tensor], memory: Memory, selected: SelectedProposals
) -> tuple[Tensor, Tensor]:
    """Evaluation: decode images of similar query counts together, as padding costs as much as queries.

    queries    inputs of the decoder before the memory, each (B, Q, ...)
    selected   their padding and counts
    returns    class logits (layers, B, Q, K), box logits (layers, B, Q, 4); zero in the padding of a shorter group
    """
    padding_mask, counts = selected.padding_mask, selected.counts  # (B, Q), (B,)
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
        inputs = [rows[images, :most] for rows in queries]  # (n, most, ...)
        found = decoder(*inputs, memory.of(images), blocks)  # (layers, n, most, K | 4)
        for parts, part in zip((logits, boxes_unact), found, strict=True):
            parts.append(F.pad(part, (0, 0, 0, width - most)))
    order = torch.tensor([image for group in groups for image in group]).argsort().to(device, non_blocking=True)
    return torch.cat(logits, dim=1)[:, order], torch.cat(boxes_unact, dim=1)[:, order]
