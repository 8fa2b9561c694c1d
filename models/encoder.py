"""Feature maps -> tokens -> memory."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import LayerSizes, call
from models.position_encoding import encode_map
from models.structures import FeatureTokens


class Tokenizer(nn.Module):
    """Flattens the maps of all levels into one sequence, with position and level encodings."""

    def __init__(self, *, hidden_dim: int, num_levels: int, temperature: float, offset: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.offset = offset
        self.level_embedding = nn.Parameter(torch.randn(num_levels, hidden_dim))

    def forward(self, levels: Sequence[Tensor], padding_mask: Tensor) -> FeatureTokens:
        """Maps (B, D, H_l, W_l) and the mask (B, H, W) of the images -> tokens of all levels."""
        tokens, positions, masks, ratios = [], [], [], []
        for embedding, level in zip(self.level_embedding, levels, strict=True):
            mask = F.interpolate(padding_mask[None].float(), size=level.shape[-2:])[0].bool()
            position = encode_map(mask, dim=level.shape[1], temperature=self.temperature, offset=self.offset)
            tokens.append(level.flatten(2).transpose(1, 2))
            positions.append(position.flatten(1, 2) + embedding)
            masks.append(mask.flatten(1))
            ratios.append(torch.stack([(~mask[:, 0]).float().mean(1), (~mask[:, :, 0]).float().mean(1)], dim=-1))
        return FeatureTokens(
            tokens=torch.cat(tokens, dim=1),
            position=torch.cat(positions, dim=1),
            padding_mask=torch.cat(masks, dim=1),
            spatial_shapes=tuple((level.shape[-2], level.shape[-1]) for level in levels),
            valid_ratios=torch.stack(ratios, dim=1),
        )


def token_references(spatial_shapes: Sequence[tuple[int, int]], valid_ratios: Tensor) -> Tensor:
    """Where each token looks on each level: its own centre, as a share of that level's padded map.

    valid_ratios   (B, L, 2)
    returns        (B, S, L, 2)  (x, y)
    """
    centres = []
    for level, (height, width) in enumerate(spatial_shapes):
        y = torch.linspace(0.5, height - 0.5, height, device=valid_ratios.device)
        x = torch.linspace(0.5, width - 0.5, width, device=valid_ratios.device)
        y = y / (valid_ratios[:, level, 1:] * height)
        x = x / (valid_ratios[:, level, :1] * width)
        centres.append(torch.stack([x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1))
    centre = torch.cat([c.flatten(1, 2) for c in centres], dim=1)
    return centre[:, :, None] * valid_ratios[:, None]


class EncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward block, each with residual and LayerNorm behind it."""

    def __init__(self, sizes: LayerSizes) -> None:
        super().__init__()
        self.attention = sizes.deformable_attention()
        self.attention_norm = nn.LayerNorm(sizes.hidden_dim)
        self.ffn = sizes.feed_forward()
        self.ffn_norm = nn.LayerNorm(sizes.hidden_dim)
        self.dropout = nn.Dropout(sizes.dropout)
        self.recompute_ffn = sizes.recompute_ffn

    def forward(self, tokens: Tensor, features: FeatureTokens, references: Tensor) -> Tensor:
        """(B, S, D) -> (B, S, D)."""
        attended = self.attention(
            tokens + features.position, references, tokens, features.padding_mask, features.spatial_shapes
        )
        tokens = self.attention_norm(tokens + self.dropout(attended))
        return self.ffn_norm(tokens + self.dropout(call(self.ffn, tokens, recompute=self.recompute_ffn)))


class Encoder(nn.Module):
    """Layers one after the other; every token is a query.

    recompute   recompute the layers in the backward pass, see `models.attention.call`
    """

    def __init__(self, layers: Sequence[EncoderLayer], *, recompute: bool) -> None:
        super().__init__()
        self.recompute = recompute
        self.layers = nn.ModuleList(layers)

    def forward(self, features: FeatureTokens) -> Tensor:
        """-> memory (B, S, D)."""
        references = token_references(features.spatial_shapes, features.valid_ratios)
        tokens = features.tokens
        for layer in self.layers:
            tokens = call(layer, tokens, features, references, recompute=self.recompute)
        return tokens
