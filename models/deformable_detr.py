"""Two-stage Deformable DETR with box refinement, with a pluggable query budget.

Source: Zhu et al., Deformable DETR: Deformable Transformers for End-to-End Object Detection, ICLR 2021.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from models.decoder import DeformableDecoder
from models.position_encoding import encode_boxes
from models.structures import DetectorOutput, Target
from models.two_stage import FrontHalf, TwoStageDetector


class LearnedQueries(nn.Module):
    """Content from a table, row i for the i-th best proposal; position from the proposal box (D3Q)."""

    def __init__(self, *, num_queries: int, hidden_dim: int) -> None:
        super().__init__()
        self.content = nn.Embedding(num_queries, hidden_dim)
        self.transform = nn.Linear(hidden_dim, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q, 4) in [0, 1] -> content (B, Q, D), position (B, Q, D)."""
        encoding = encode_boxes(boxes, features=self.transform.in_features // 4, order=(0, 1, 2, 3))
        position = self.norm(self.transform(encoding))
        return self.content.weight[: boxes.shape[1]].expand(len(boxes), -1, -1), position


class ProposalQueries(nn.Module):
    """Position and content both from the proposal box (the baseline)."""

    def __init__(self, *, hidden_dim: int) -> None:
        super().__init__()
        self.transform = nn.Linear(2 * hidden_dim, 2 * hidden_dim)
        self.norm = nn.LayerNorm(2 * hidden_dim)

    def forward(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q, 4) in [0, 1] -> content (B, Q, D), position (B, Q, D)."""
        encoding = encode_boxes(boxes, features=self.transform.in_features // 4, order=(0, 1, 2, 3))
        position, content = self.norm(self.transform(encoding)).chunk(2, dim=-1)
        return content, position


class DeformableDETR(TwoStageDetector):
    """The front half, and a decoder with one position encoding for all layers."""

    def __init__(
        self, front: FrontHalf, *, query_maker: LearnedQueries | ProposalQueries, decoder: DeformableDecoder
    ) -> None:
        super().__init__(front)
        self.query_maker = query_maker
        self.decoder = decoder

    def forward(self, images: Tensor, padding_mask: Tensor, targets: Sequence[Target] | None = None) -> DetectorOutput:
        """Images (B, 3, H, W), their padding (B, H, W); targets are not used."""
        proposed = self.propose(images, padding_mask)  # memory (B, S, D), queries (B, Q), boxes (B, Q, 4)
        content, position = self.query_maker(proposed.boxes)  # (B, Q, D), (B, Q, D)
        logits, boxes_unact = self.decode((content, position, proposed.boxes), proposed)  # (layers, B, Q, K | 4)
        return proposed.output(logits, boxes_unact)
