"""DINO, with a pluggable query budget.

Source: Zhang et al., DINO: DETR with Improved DeNoising Anchor Boxes, ICLR 2023.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.decoder import DinoDecoder, Memory
from models.decoding import decode_in_groups
from models.denoising import Denoising, NoiseDraws, denoising_blocks
from models.encoder import Encoder, Tokenizer
from models.proposals import ProposalHead, limit_to_tokens, query_blocks, select_queries
from models.structures import (
    DetectorOutput,
    LayerPredictions,
    QueryBudget,
    Target,
)


class DINO(nn.Module):
    """Backbone, neck, encoder, proposals, query budget, denoising, decoder.

    num_queries              rows of the content table: the ceiling of every image's query count
    query_bucket             multiple of query counts in training, see `select_queries`
    class_agnostic           see `select_queries`
    mask_denoising_padding   see `denoising_mask`
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
        denoising: Denoising | None,
        decoder: DinoDecoder,
        hidden_dim: int,
        num_queries: int,
        query_bucket: int,
        class_agnostic: bool,
        mask_denoising_padding: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.proposal_head = proposal_head
        self.query_budget = query_budget
        self.denoising = denoising
        self.decoder = decoder
        self.content_queries = nn.Embedding(num_queries, hidden_dim)
        self.query_bucket = query_bucket
        self.class_agnostic = class_agnostic
        self.mask_denoising_padding = mask_denoising_padding

    def forward(
        self,
        images: Tensor,
        padding_mask: Tensor,
        targets: Sequence[Target] | None = None,
        noise: NoiseDraws | None = None,
    ) -> DetectorOutput:
        """Images (B, 3, H, W), their padding (B, H, W); in training also the targets (denoising needs them)."""
        features = self.tokenizer(self.neck(self.backbone(images)), padding_mask)
        memory = self.encoder(features)
        proposals = self.proposal_head(memory, features)  # every token scored and boxed
        num_queries, aux = self.query_budget(*proposals.finest_map())  # how many
        num_queries = limit_to_tokens(num_queries, features.spatial_shapes)
        bucket = self.query_bucket if self.training else 1
        queries = select_queries(proposals, num_queries, class_agnostic=self.class_agnostic, bucket=bucket)  # which

        batch, most = queries.index.shape
        content = self.content_queries.weight[:most].expand(batch, -1, -1)
        boxes = queries.boxes_unact.detach().sigmoid()
        blocks = query_blocks(queries.padding_mask, queries.counts)
        denoising = None
        if self.denoising is not None and targets is not None:
            denoising = self.denoising(targets, noise)
            blocks = denoising_blocks(denoising, queries.padding_mask, blocks, mask_padding=self.mask_denoising_padding)
            content = torch.cat([denoising.content, content], dim=1)
            boxes = torch.cat([denoising.boxes_unact.sigmoid(), boxes], dim=1)

        seen = Memory(memory, features)
        if self.training or denoising is not None:
            logits, boxes_unact = self.decoder(content, boxes, seen, blocks)
        else:
            logits, boxes_unact = decode_in_groups(self.decoder, (content, boxes), seen, queries)
        front, denoised = 0, None
        if denoising is not None:
            front = denoising.content.shape[1]
            denoised = LayerPredictions(
                logits[:, :, :front], boxes_unact[:, :, :front], denoising.padding_mask, (front,) * batch
            )
        return DetectorOutput(
            queries=LayerPredictions(
                logits[:, :, front:], boxes_unact[:, :, front:], queries.padding_mask, queries.counts
            ),
            num_queries=num_queries,
            proposals=proposals.as_predictions(),
            selected=queries.as_predictions(),
            initial_boxes=boxes[:, front:],
            denoising=denoised,
            denoising_queries=denoising,
            aux=aux | {"padded_size": torch.tensor(images.shape[-2:])},
        )
