"""Proposals: every token of the memory scored and boxed; and the selection of the queries among them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.attention import QueryBlocks, RowWise, blocking_bias
from models.structures import FeatureTokens, ProposalSet, SelectedProposals

BASE_SIZE = 0.05
BORDER = 0.01


def anchor_boxes_unact(features: FeatureTokens) -> Tensor:
    """One anchor per token, as logits: centre of its cell in the unpadded image, side 0.05 * 2^level.

    returns   (B, S, 4)  cxcywh logits; +inf where the token is padding or one of the four numbers is outside
              (0.01, 0.99), compared in float32

    Source: Zhu et al., Deformable DETR, ICLR 2021, two-stage variant.
    """
    anchors = []
    start = 0
    for level, (height, width) in enumerate(features.spatial_shapes):
        mask = features.padding_mask[:, start : start + height * width].unflatten(1, (height, width))
        start += height * width
        valid_height = (~mask[:, :, 0]).sum(1).view(-1, 1, 1)
        valid_width = (~mask[:, 0]).sum(1).view(-1, 1, 1)
        y = torch.arange(height, dtype=torch.float32, device=mask.device).view(1, -1, 1)
        x = torch.arange(width, dtype=torch.float32, device=mask.device).view(1, 1, -1)
        centre_y = ((y + 0.5) / valid_height).expand(-1, -1, width)
        centre_x = ((x + 0.5) / valid_width).expand(-1, height, -1)
        side = torch.full_like(centre_x, BASE_SIZE * 2.0**level)
        anchors.append(torch.stack([centre_x, centre_y, side, side], dim=-1).flatten(1, 2))
    boxes = torch.cat(anchors, dim=1)
    valid = ((boxes > BORDER) & (boxes < 1 - BORDER)).all(-1) & ~features.padding_mask
    return torch.log(boxes / (1 - boxes)).masked_fill(~valid[..., None], float("inf"))


class BoxHead(nn.Module):
    """Two hidden layers and four box deltas, in logit space."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.hidden = RowWise(
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, hidden_dim),
            nn.ReLU(inplace=True),
        )
        self.deltas = nn.Linear(hidden_dim, 4)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., 4) float32, also under autocast: bfloat16 near 1 is three pixels coarse."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.deltas(self.hidden(hidden.float()))


class ProposalHead(nn.Module):
    """Scores and boxes every token of the memory."""

    def __init__(self, *, hidden_dim: int, num_classes: int) -> None:
        super().__init__()
        self.transform = nn.Linear(hidden_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)
        self.classifier = nn.Linear(hidden_dim, num_classes)
        self.box_head = BoxHead(hidden_dim)

    def forward(self, memory: Tensor, features: FeatureTokens) -> ProposalSet:
        """(B, S, D) -> one proposal per token; invalid tokens take part with zeroed memory (published)."""
        anchors_unact = anchor_boxes_unact(features)
        invalid = anchors_unact[..., :1].isinf()
        with torch.autocast(memory.device.type, enabled=False):  # scores rank the queries: float32
            hidden = self.norm(self.transform(memory.float().masked_fill(invalid, 0.0)))
            logits = self.classifier(hidden)
        return ProposalSet(
            features=hidden,
            logits=logits,
            boxes_unact=self.box_head(hidden) + anchors_unact,
            padding_mask=features.padding_mask,
            spatial_shapes=features.spatial_shapes,
        )


class FixedBudget(nn.Module):
    """The query budget of the baselines: the same number of queries for every image."""

    def __init__(self, num_queries: int) -> None:
        super().__init__()
        self.num_queries = num_queries

    def forward(self, feature_map: Tensor, padding_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, D, H, W), (B, H, W) -> num_queries (B,) int64, no aux tensors."""
        count = torch.full((feature_map.shape[0],), self.num_queries, device=feature_map.device)
        return count, {}


def select_queries(
    proposals: ProposalSet, num_queries: Tensor, *, class_agnostic: bool, bucket: int = 1
) -> SelectedProposals:
    """The best-scored proposals of each image, padded to the batch's largest query count.

    num_queries      (B,)  int64
    class_agnostic   rank by the first class channel instead of the best class
    bucket           pad to a multiple of it, limited by the number of tokens
    """
    scores = proposals.logits[..., 0] if class_agnostic else proposals.logits.max(-1).values
    counts = tuple(num_queries.tolist())  # sync
    most = min(-(-max(counts) // bucket) * bucket, scores.shape[1])
    index = scores.topk(most, dim=1).indices
    return SelectedProposals(
        index=index,
        logits=take_rows(proposals.logits, index),
        boxes_unact=take_rows(proposals.boxes_unact, index),
        padding_mask=torch.arange(most, device=index.device) >= num_queries[:, None],
        counts=counts,
    )


def limit_to_tokens(num_queries: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> Tensor:
    """Limit the query counts of a small image to its number of tokens.

    Differs from the reference, which raises an error.
    """
    return num_queries.clamp(max=sum(height * width for height, width in spatial_shapes))


def take_rows(table: Tensor, index: Tensor) -> Tensor:
    """(B, S, C), (B, Q) -> (B, Q, C)."""
    return table.gather(1, index[..., None].expand(-1, -1, table.shape[-1]))


def query_blocks(padding_mask: Tensor, counts: Sequence[int]) -> QueryBlocks:
    """(B, Q) bool, and the query count of each image -> attention bias that blocks the padding."""
    if min(counts) == padding_mask.shape[1]:
        return QueryBlocks()
    return QueryBlocks(bias=blocking_bias(padding_mask[:, None]))
