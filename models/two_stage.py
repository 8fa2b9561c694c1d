"""The front half of both detectors: images -> memory, scored proposals, query counts, and the selected queries."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from models.decoder import decode_in_groups
from models.encoder import Encoder, Tokenizer
from models.proposals import ProposalHead, limit_to_tokens, query_blocks, select_queries
from models.structures import (
    DetectorOutput,
    LayerPredictions,
    Memory,
    ProposalSet,
    QueryBudget,
    SelectedProposals,
)


@dataclass(frozen=True, kw_only=True)
class FrontHalf:
    """The modules of `TwoStageDetector.propose`, and the settings of the selection."""

    backbone: nn.Module
    neck: nn.Module
    tokenizer: Tokenizer
    encoder: Encoder
    proposal_head: ProposalHead
    query_budget: QueryBudget
    query_bucket: int
    """Multiple of query counts in training, see `select_queries`"""
    class_agnostic: bool
    """See `select_queries`"""


@dataclass(frozen=True)
class Proposed:
    """The result of the front half."""

    memory: Memory
    proposals: ProposalSet
    """Every token, scored and boxed"""
    num_queries: Tensor
    """(B,) int64"""
    queries: SelectedProposals
    """The selected proposals"""
    aux: dict[str, Tensor]
    """Tensors of the query budget for the losses"""
    boxes: Tensor
    """(B, Q, 4) initial reference boxes of the queries, cxcywh in [0, 1], without gradient"""
    padded_size: tuple[int, int]
    """(H, W) of the padded images"""

    def output(self, logits: Tensor, boxes_unact: Tensor) -> DetectorOutput:
        """The decoder's predictions, (layers, B, Q, K) and (layers, B, Q, 4), and the front half's results."""
        return DetectorOutput(
            queries=LayerPredictions(logits, boxes_unact, self.queries.padding_mask, self.queries.counts),
            num_queries=self.num_queries,
            proposals=self.proposals.as_predictions(),
            selected=self.queries.as_predictions(),
            initial_boxes=self.boxes,
            padded_size=self.padded_size,
            aux=self.aux,
        )


class TwoStageDetector(nn.Module):
    """Backbone, neck, encoder, proposals and query budget; a subclass adds its queries and its decoder."""

    decoder: nn.Module

    def __init__(self, front: FrontHalf) -> None:
        super().__init__()
        self.backbone = front.backbone
        self.neck = front.neck
        self.tokenizer = front.tokenizer
        self.encoder = front.encoder
        self.proposal_head = front.proposal_head
        self.query_budget = front.query_budget
        self.query_bucket = front.query_bucket
        self.class_agnostic = front.class_agnostic

    def propose(self, images: Tensor, padding_mask: Tensor) -> Proposed:
        """Score and box every token, and select the queries: images (B, 3, H, W), padding_mask (B, H, W) bool."""
        maps = self.neck(self.backbone(images))  # L x (B, D, H_l, W_l)
        features = self.tokenizer(maps, padding_mask)  # tokens (B, S, D)
        memory = Memory(self.encoder(features), features)  # tokens (B, S, D)
        proposals = self.proposal_head(memory.tokens, features)  # logits (B, S, K), boxes (B, S, 4)
        num_queries, aux = self.query_budget(*proposals.finest_map())  # (B,): how many
        num_queries = limit_to_tokens(num_queries, features.spatial_shapes)
        bucket = self.query_bucket if self.training else 1
        queries = select_queries(  # index (B, Q): which
            proposals, num_queries, class_agnostic=self.class_agnostic, bucket=bucket
        )
        boxes = queries.boxes_unact.detach().sigmoid()  # (B, Q, 4)
        height, width = images.shape[-2:]
        return Proposed(memory, proposals, num_queries, queries, aux, boxes, (height, width))

    def decode(self, inputs: Sequence[Tensor], proposed: Proposed) -> tuple[Tensor, Tensor]:
        """Class and box logits of all layers, (layers, B, Q, K) and (layers, B, Q, 4); see `decode_in_groups`.

        inputs   inputs of the decoder before the memory, each (B, Q, ...)
        """
        queries = proposed.queries
        if not self.training:
            return decode_in_groups(self.decoder, inputs, proposed.memory, queries)
        blocks = query_blocks(queries.padding_mask, queries.counts)
        logits, boxes_unact = self.decoder(*inputs, proposed.memory, blocks)
        return logits, boxes_unact
