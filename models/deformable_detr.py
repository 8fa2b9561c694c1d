"""Two-stage Deformable DETR with box refinement, with a pluggable query budget.

Source: Zhu et al., Deformable DETR: Deformable Transformers for End-to-End Object Detection, ICLR 2021.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.decoder import DeformableDecoder, Memory
from models.decoding import decode_in_groups
from models.encoder import Encoder, Tokenizer
from models.position_encoding import encode_boxes
from models.proposals import ProposalHead, limit_to_tokens, query_blocks, select_queries
from models.structures import DetectorOutput, LayerPredictions, QueryBudget, Target


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


class DeformableDETR(nn.Module):
    """Backbone, neck, encoder, proposals, query budget, decoder.

    query_bucket     multiple of query counts in training, see `select_queries`
    class_agnostic   see `select_queries`
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        neck: nn.Module,
        tokenizer: Tokenizer,
        encoder: Encoder,
        proposal_head: ProposalHead,
        query_budget: QueryBudget,
        query_maker: LearnedQueries | ProposalQueries,
        decoder: DeformableDecoder,
        query_bucket: int,
        class_agnostic: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.proposal_head = proposal_head
        self.query_budget = query_budget
        self.query_maker = query_maker
        self.decoder = decoder
        self.query_bucket = query_bucket
        self.class_agnostic = class_agnostic

    def forward(self, images: Tensor, padding_mask: Tensor, targets: Sequence[Target] | None = None) -> DetectorOutput:
        """Images (B, 3, H, W), their padding (B, H, W); targets are not used."""
        features = self.tokenizer(self.neck(self.backbone(images)), padding_mask)
        memory = self.encoder(features)
        proposals = self.proposal_head(memory, features)  # every token scored and boxed
        num_queries, aux = self.query_budget(*proposals.finest_map())  # how many
        num_queries = limit_to_tokens(num_queries, features.spatial_shapes)
        bucket = self.query_bucket if self.training else 1
        queries = select_queries(proposals, num_queries, class_agnostic=self.class_agnostic, bucket=bucket)  # which

        boxes = queries.boxes_unact.detach().sigmoid()
        content, position = self.query_maker(boxes)
        seen = Memory(memory, features)
        if self.training:
            blocks = query_blocks(queries.padding_mask, queries.counts)
            logits, boxes_unact = self.decoder(content, position, boxes, seen, blocks)
        else:
            logits, boxes_unact = decode_in_groups(self.decoder, (content, position, boxes), seen, queries)
        return DetectorOutput(
            queries=LayerPredictions(logits, boxes_unact, queries.padding_mask, queries.counts),
            num_queries=num_queries,
            proposals=proposals.as_predictions(),
            selected=queries.as_predictions(),
            initial_boxes=boxes,
            aux=aux | {"padded_size": torch.tensor(images.shape[-2:])},
        )
