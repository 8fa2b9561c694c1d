"""Tensors of the original DINO and Deformable DETR: modules without a forward, named as those repositories name them.

Written from the repositories' attribute names (IDEA-Research/DINO, fundamentalvision/Deformable-DETR), not from the
table under test.
"""

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import Config
from models.backbones.backbone import build_backbone


def original_state(config: Config, *, num_classes: int, label_rows: int = 0) -> dict[str, Tensor]:
    """Random tensors of the original model of the same sizes; the decoder holds the heads a second time.

    label_rows   rows of DINO's label table; one more than classes as published
    """
    model = config.model
    dino = model.detector == "dino"
    dim, layers = model.hidden_dim, model.decoder.num_layers
    root = nn.Module()
    root.transformer = _transformer(config)
    root.class_embed = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(layers + (not dino)))
    root.bbox_embed = nn.ModuleList(_mlp(dim, dim, dim, 4) for _ in range(layers + (not dino)))
    backbone = build_backbone(
        name=model.backbone.name,
        out_strides=model.backbone.out_strides,
        base_width=model.backbone.base_width,
        frozen_batch_norm=True,
        frozen_stages=1,
    )
    root.backbone = nn.ModuleList([_holder(body=backbone)])
    root.input_proj = nn.ModuleList()
    for level in range(model.neck.num_levels):
        first_extra = len(backbone.out_channels)
        channels, kernel = (
            (backbone.out_channels[level], 1)
            if level < first_extra
            else (backbone.out_channels[-1] if level == first_extra else dim, 3)
        )
        root.input_proj.append(
            nn.Sequential(nn.Conv2d(channels, dim, kernel), nn.GroupNorm(model.neck.num_groups, dim))
        )
    root.transformer.decoder.class_embed = root.class_embed
    root.transformer.decoder.bbox_embed = root.bbox_embed
    if dino:
        root.transformer.enc_out_class_embed = nn.Linear(dim, num_classes)
        root.transformer.enc_out_bbox_embed = _mlp(dim, dim, dim, 4)
        root.label_enc = nn.Embedding(label_rows, dim)
    shared: dict[int, Tensor] = {}
    return {
        name: shared.setdefault(value.data_ptr(), torch.rand_like(value)) for name, value in root.state_dict().items()
    }


def _transformer(config: Config) -> nn.Module:
    model = config.model
    dim, dino = model.hidden_dim, model.detector == "dino"
    transformer = _holder(
        level_embed=nn.Parameter(torch.empty(model.neck.num_levels, dim)),
        encoder=_holder(layers=nn.ModuleList(_encoder_layer(config) for _ in range(model.encoder.num_layers))),
        decoder=_holder(layers=nn.ModuleList(_decoder_layer(config) for _ in range(model.decoder.num_layers))),
        enc_output=nn.Linear(dim, dim),
        enc_output_norm=nn.LayerNorm(dim),
    )
    if dino:
        transformer.tgt_embed = nn.Embedding(model.num_queries, dim)
        transformer.decoder.ref_point_head = _mlp(2 * dim, dim, dim)
        transformer.decoder.norm = nn.LayerNorm(dim)
    else:
        transformer.pos_trans = nn.Linear(2 * dim, 2 * dim)
        transformer.pos_trans_norm = nn.LayerNorm(2 * dim)
    return transformer


def _encoder_layer(config: Config) -> nn.Module:
    dim, stack = config.model.hidden_dim, config.model.encoder
    return _holder(
        self_attn=_deformable_attention(config, stack),
        norm1=nn.LayerNorm(dim),
        linear1=nn.Linear(dim, stack.ffn_dim),
        linear2=nn.Linear(stack.ffn_dim, dim),
        norm2=nn.LayerNorm(dim),
    )


def _decoder_layer(config: Config) -> nn.Module:
    dim, stack = config.model.hidden_dim, config.model.decoder
    return _holder(
        cross_attn=_deformable_attention(config, stack),
        norm1=nn.LayerNorm(dim),
        self_attn=nn.MultiheadAttention(dim, stack.num_heads),
        norm2=nn.LayerNorm(dim),
        linear1=nn.Linear(dim, stack.ffn_dim),
        linear2=nn.Linear(stack.ffn_dim, dim),
        norm3=nn.LayerNorm(dim),
    )


def _deformable_attention(config: Config, stack: Any) -> nn.Module:
    dim = config.model.hidden_dim
    samples = stack.num_heads * config.model.neck.num_levels * stack.num_points
    return _holder(
        sampling_offsets=nn.Linear(dim, 2 * samples),
        attention_weights=nn.Linear(dim, samples),
        value_proj=nn.Linear(dim, dim),
        output_proj=nn.Linear(dim, dim),
    )


def _mlp(*widths: int) -> nn.Module:
    return _holder(layers=nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))


def _holder(**parts: nn.Module | nn.Parameter) -> nn.Module:
    module = nn.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    return module
