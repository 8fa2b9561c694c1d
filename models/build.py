"""Config -> detector, criterion, postprocess: the only place where configs, models and d3q meet."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from configs.schema import Config, SetLossConfig, TransformerConfig
from d3q import CountLoss, DensityBranch, DensityBudget, DensityLoss, LogSizeL1, query_count
from models.attention import LayerSizes
from models.backbones.backbone import build_backbone
from models.boxes import L1Distance
from models.criterion import Criterion, SetLoss
from models.decoder import DecoderLayer, DeformableDecoder, DinoDecoder, PredictionHeads
from models.deformable_detr import DeformableDETR, LearnedQueries, ProposalQueries
from models.denoising import Denoising
from models.dino import DINO
from models.encoder import Encoder, EncoderLayer, Tokenizer
from models.init_weights import initialise
from models.matching.cost import MatchingCost
from models.matching.hungarian import HungarianMatcher
from models.neck import Neck
from models.postprocess import PostProcess
from models.proposals import FixedBudget, ProposalHead
from models.structures import AuxiliaryLoss, BoxDistance
from models.two_stage import FrontHalf

PUBLISHED_DENSITY = 0.1
"""Initial density of a detector that is built without a data set."""


def build_detector(config: Config) -> DINO | DeformableDETR:
    """The detector with random weights; nothing is downloaded."""
    detector = _build_dino(config) if config.model.detector == "dino" else _build_deformable_detr(config)
    initialise(detector)
    return detector


def build_criterion(config: Config) -> Criterion:
    """Matching and losses."""
    model, criterion = config.model, config.criterion
    auxiliary_losses: list[AuxiliaryLoss] = []
    if model.d3q is not None:
        auxiliary_losses.append(DensityLoss(weight=criterion.density_weight, merge=config.fidelity.density_merge))
        if criterion.count_weight > 0:
            auxiliary_losses.append(CountLoss(weight=criterion.count_weight))
    return Criterion(
        decoder=_build_set_loss(criterion.decoder, config),
        encoder=_build_set_loss(criterion.encoder, config),
        encoder_tokens=criterion.encoder_tokens,
        class_agnostic=model.class_agnostic_proposals,
        decoder_normalizer=criterion.decoder_normalizer,
        auxiliary_losses=auxiliary_losses,
    )


def build_postprocess(config: Config) -> PostProcess:
    """Output -> detections. With sigmoid classification, at most model.num_queries detections per image."""
    decoder = config.criterion.decoder
    return PostProcess(
        classification=decoder.classification,
        max_detections=config.model.num_queries,
        scores=config.evaluation.scores,
        no_object_weight=decoder.no_object_weight,
    )


def expected_queries(config: Config, objects: Sequence[int]) -> list[int]:
    """Query count per image, assuming a perfect count estimate.

    objects   per image
    """
    model = config.model
    if model.d3q is None:
        return [model.num_queries] * len(objects)
    return query_count(
        torch.tensor(objects, dtype=torch.float32),
        queries_per_object=model.d3q.queries_per_object,
        min_queries=model.d3q.min_queries,
        max_queries=model.d3q.max_queries or model.num_queries,
        round_objects=config.fidelity.round_objects,
    ).tolist()


def _build_dino(config: Config) -> DINO:
    model = config.model
    denoising = None
    if model.denoising is not None:
        denoising = Denoising(
            hidden_dim=model.hidden_dim,
            num_classes=model.class_count,
            max_queries=config.fidelity.max_denoising_queries,
            **asdict(model.denoising),
        )
    return DINO(
        _front_half(config),
        denoising=denoising,
        decoder=DinoDecoder(**_decoder_parts(config), hidden_dim=model.hidden_dim),
        hidden_dim=model.hidden_dim,
        num_queries=model.num_queries,
        mask_denoising_padding=config.fidelity.mask_denoising_padding,
    )


def _build_deformable_detr(config: Config) -> DeformableDETR:
    model = config.model
    query_maker: LearnedQueries | ProposalQueries
    if model.query_content == "learned":
        query_maker = LearnedQueries(num_queries=model.num_queries, hidden_dim=model.hidden_dim)
    else:
        query_maker = ProposalQueries(hidden_dim=model.hidden_dim)
    return DeformableDETR(
        _front_half(config),
        query_maker=query_maker,
        decoder=DeformableDecoder(**_decoder_parts(config)),
    )


def _front_half(config: Config) -> FrontHalf:
    """All modules up to the queries: the same in both detectors."""
    model = config.model
    backbone = build_backbone(
        name=model.backbone.name,
        out_strides=model.backbone.out_strides,
        base_width=model.backbone.base_width,
        frozen_batch_norm=model.backbone.batch_norm == "frozen",
        frozen_stages=model.backbone.frozen_stages,
    )
    sizes = _layer_sizes(config, model.encoder)
    layers = [EncoderLayer(sizes) for _ in range(model.encoder.num_layers)]
    return FrontHalf(
        backbone=backbone,
        neck=Neck(
            in_channels=backbone.out_channels,
            hidden_dim=model.hidden_dim,
            num_levels=model.neck.num_levels,
            num_groups=model.neck.num_groups,
            bias=model.neck.bias,
        ),
        tokenizer=Tokenizer(
            hidden_dim=model.hidden_dim,
            num_levels=model.neck.num_levels,
            temperature=model.position_encoding.temperature,
            offset=model.position_encoding.offset,
        ),
        encoder=Encoder(layers, recompute=config.runtime.recompute == "layers"),
        proposal_head=ProposalHead(hidden_dim=model.hidden_dim, num_classes=model.class_count),
        query_budget=_build_budget(config),
        query_bucket=config.runtime.query_bucket,
        class_agnostic=model.class_agnostic_proposals,
    )


def _build_budget(config: Config) -> nn.Module:
    model = config.model
    if model.d3q is None:
        return FixedBudget(model.num_queries)
    density = model.d3q.initial_density
    branch = DensityBranch(
        in_channels=model.hidden_dim,
        hidden_channels=model.hidden_dim,
        initial_density=PUBLISHED_DENSITY if density is None else density,
    )
    return DensityBudget(
        density_branch=branch,
        queries_per_object=model.d3q.queries_per_object,
        min_queries=model.d3q.min_queries,
        max_queries=model.d3q.max_queries or model.num_queries,
        round_objects=config.fidelity.round_objects,
        count_padding=config.fidelity.count_padding,
    )


def _layer_sizes(config: Config, stack: TransformerConfig) -> LayerSizes:
    return LayerSizes(
        hidden_dim=config.model.hidden_dim,
        num_levels=config.model.neck.num_levels,
        num_heads=stack.num_heads,
        num_points=stack.num_points,
        ffn_dim=stack.ffn_dim,
        dropout=stack.dropout,
        recompute_ffn=config.runtime.recompute == "feed_forward",
    )


def _decoder_parts(config: Config) -> dict[str, Any]:
    sizes = _layer_sizes(config, config.model.decoder)
    return {
        "layers": [DecoderLayer(sizes) for _ in range(config.model.decoder.num_layers)],
        "heads": _prediction_heads(config),
        "recompute": config.runtime.recompute == "layers",
    }


def _prediction_heads(config: Config) -> PredictionHeads:
    no_object = config.criterion.decoder.classification == "softmax"
    return PredictionHeads(
        hidden_dim=config.model.hidden_dim,
        num_layers=config.model.decoder.num_layers,
        num_logits=config.model.class_count + no_object,
    )


def _build_set_loss(loss: SetLossConfig, config: Config) -> SetLoss:
    criterion = config.criterion
    box_distance: BoxDistance = L1Distance()
    if criterion.box_distance == "log_size_l1":
        box_distance = LogSizeL1(form=config.fidelity.log_size_form)
    cost = MatchingCost(
        classification=loss.classification,
        class_weight=loss.class_cost,
        box_weight=loss.box_weight,
        giou_weight=loss.giou_weight,
        alpha=loss.alpha,
        gamma=loss.gamma,
        box_distance=box_distance,
    )
    return SetLoss(
        classification=loss.classification,
        class_weight=loss.class_weight,
        box_weight=loss.box_weight,
        giou_weight=loss.giou_weight,
        no_object_weight=loss.no_object_weight,
        alpha=loss.alpha,
        gamma=loss.gamma,
        box_distance=box_distance,
        matcher=HungarianMatcher(cost=cost, drop_off_centre=criterion.drop_off_centre_matches),
    )
