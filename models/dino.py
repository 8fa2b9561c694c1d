"""DINO, with a pluggable query budget.

Source: Zhang et al., DINO: DETR with Improved DeNoising Anchor Boxes, ICLR 2023.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.decoder import DinoDecoder
from models.denoising import Denoising, NoiseDraws, denoising_blocks
from models.proposals import query_blocks
from models.structures import DetectorOutput, LayerPredictions, Target
from models.two_stage import FrontHalf, TwoStageDetector


class DINO(TwoStageDetector):
    """The front half, denoising, decoder; content queries come from a table, row i for the i-th best proposal.

    num_queries              rows of the content table: the ceiling of every image's query count
    mask_denoising_padding   see `denoising_mask`
    """

    def __init__(
        self,
        front: FrontHalf,
        *,
        denoising: Denoising | None,
        decoder: DinoDecoder,
        hidden_dim: int,
        num_queries: int,
        mask_denoising_padding: bool,
    ) -> None:
        super().__init__(front)
        self.denoising = denoising
        self.decoder = decoder
        self.content_queries = nn.Embedding(num_queries, hidden_dim)
        self.mask_denoising_padding = mask_denoising_padding

    def forward(
        self,
        images: Tensor,
        padding_mask: Tensor,
        targets: Sequence[Target] | None = None,
        noise: NoiseDraws | None = None,
    ) -> DetectorOutput:
        """Images (B, 3, H, W), their padding (B, H, W); in training also the targets (denoising needs them)."""
        proposed = self.propose(images, padding_mask)  # memory (B, S, D), queries (B, Q)
        queries, boxes = proposed.queries, proposed.boxes  # boxes (B, Q, 4)
        batch, most = queries.index.shape
        content = self.content_queries.weight[:most].expand(batch, -1, -1)  # (B, Q, D)
        if self.denoising is None or targets is None:
            return proposed.output(*self.decode((content, boxes), proposed))

        denoising = self.denoising(targets, noise)  # F queries
        matching = query_blocks(queries.padding_mask, queries.counts)
        blocks = denoising_blocks(denoising, queries.padding_mask, matching, mask_padding=self.mask_denoising_padding)
        content = torch.cat([denoising.content, content], dim=1)  # (B, F+Q, D)
        boxes = torch.cat([denoising.boxes_unact.sigmoid(), boxes], dim=1)  # (B, F+Q, 4)
        logits, boxes_unact = self.decoder(content, boxes, proposed.memory, blocks)  # (layers, B, F+Q, K | 4)
        front = denoising.content.shape[1]  # F
        denoised = LayerPredictions(
            logits[:, :, :front], boxes_unact[:, :, :front], denoising.padding_mask, (front,) * batch
        )
        output = proposed.output(logits[:, :, front:], boxes_unact[:, :, front:])  # (layers, B, Q, K | 4)
        return replace(output, denoising=denoised, denoising_queries=denoising)
