"""Recorded numbers of the published code: files, configs made from their own `meta`, targets, comparisons."""

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from configs.schema import (
    BackboneConfig,
    Config,
    CriterionConfig,
    D3QConfig,
    DataConfig,
    DenoisingConfig,
    ModelConfig,
    NeckConfig,
    OptimConfig,
    PositionEncodingConfig,
    SetLossConfig,
    SplitConfig,
    TransformerConfig,
)
from engine.checkpoints.key_mapping import mmdetection_naming
from models.build import build_detector

GOLDENS = Path(os.environ.get("D3Q_GOLDENS") or Path(__file__).parents[1] / "data" / "goldens")
# Where the published config gives none: hard-coded in DINO, no floor in Deformable DETR.
PUBLISHED_MIN_QUERIES = {"dino_d3q": 300, "deformable_d3q": 1}


@dataclass(frozen=True)
class GoldenTarget:
    """A target as the published code had it: pixel boxes of the resized image."""

    boxes_xyxy: Tensor
    labels: Tensor
    size: tuple[int, int]
    image_id: int = 0

    @property
    def boxes(self) -> Tensor:
        factor = self.boxes_xyxy.new_tensor([self.size[1], self.size[0]] * 2)
        corners = self.boxes_xyxy / factor
        return torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)


@dataclass(frozen=True)
class Golden:
    """One file: its arrays as tensors, and its meta."""

    path: Path
    arrays: dict[str, np.ndarray]
    meta: dict

    def __getitem__(self, key: str) -> Tensor:
        return torch.from_numpy(np.array(self.arrays[key]))

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def keys(self, prefix: str) -> list[str]:
        return [key for key in self.arrays if key.startswith(prefix)]

    @property
    def model(self) -> str:
        return self.meta["model"]

    def count(self, pattern: str) -> int:
        """How many of pattern.format(0), pattern.format(1), ... there are."""
        number = 0
        while pattern.format(number) in self.arrays:
            number += 1
        return number


@functools.cache
def load_golden(path: Path) -> Golden:
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    return Golden(path, arrays, json.loads(str(arrays.pop("meta"))))


def golden_paths(kind: str | None = None) -> list[Path]:
    """Files of a kind (all files without one), by what their own meta says."""
    return [path for path in sorted(GOLDENS.glob("*.npz")) if kind is None or kind_of(path) == kind]


@functools.cache
def kind_of(path: Path) -> str:
    """trajectory, model, units, or unknown."""
    with np.load(path) as file:
        meta = json.loads(str(file["meta"]))
    if "kind" in meta:
        return "trajectory" if meta["kind"] == "trajectory" else "unknown"
    if "model" in meta:
        return "model"
    return "units" if {"density_sets", "msda_cases"} & set(meta) else "unknown"


# (file, tensor group) -> (largest deviation, its tolerance)
DEVIATIONS: dict[tuple[str, str], tuple[float, float]] = {}


def note_deviation(golden: Golden, group: str, deviation: float, tolerance: float) -> None:
    """Remember the deviation of a group that comes closest to its tolerance; what follows a colon is detail."""

    def closeness(entry: tuple[float, float]) -> float:
        return entry[0] / entry[1] if entry[1] else entry[0]

    key = (golden.path.name, group.split(":")[0])
    DEVIATIONS[key] = max(DEVIATIONS.get(key, (0.0, tolerance)), (deviation, tolerance), key=closeness)


def assert_close(
    golden: Golden, group: str, ours: Tensor, recorded: Tensor, *, atol: float = 0.0, rtol: float = 0.0
) -> None:
    """Equal shapes, equal infinities, and |ours - recorded| <= atol + rtol * |recorded|; notes the deviation."""
    ours, recorded = ours.detach().double(), recorded.double()
    assert ours.shape == recorded.shape, f"{group}: {tuple(ours.shape)} here, {tuple(recorded.shape)} recorded"
    finite = recorded.isfinite()
    assert torch.equal(ours[~finite], recorded[~finite]), f"{group}: infinite entries differ"
    ours, recorded = ours[finite], recorded[finite]
    if not ours.numel():
        return
    difference = (ours - recorded).abs()
    allowed = atol + rtol * recorded.abs()
    worst = int((difference / allowed.clamp(min=1e-30)).nan_to_num(torch.inf).argmax())
    note_deviation(golden, group, float(difference[worst]), float(allowed[worst]))
    assert difference[worst] <= allowed[worst], (
        f"{group}: {float(ours[worst])} here, {float(recorded[worst])} recorded, "
        f"off by {float(difference[worst]):.3g}, allowed {float(allowed[worst]):.3g}"
    )


def config_of(meta: dict) -> Config:
    """This project's config of a recorded model: published settings, recorded sizes."""
    published = meta["config"]
    dino, d3q = meta["model"].startswith("dino"), meta["model"].endswith("d3q")
    width = published["bbox_head"]["embed_dims"]
    num_queries = published["num_queries"]
    layers = {name: _stack(published[name]) for name in ("encoder", "decoder")}
    position = published["positional_encoding"]
    model = ModelConfig(
        detector="dino" if dino else "deformable_detr",
        num_classes=published["bbox_head"]["num_classes"],
        hidden_dim=width,
        num_queries=num_queries,
        query_content="learned" if dino or d3q else "proposal",
        class_agnostic_proposals=not dino,
        backbone=BackboneConfig(
            name=f"resnet{published['backbone']['depth']}",
            base_width=published["backbone"]["base_channels"],
            out_strides=tuple(4 * 2**i for i in published["backbone"]["out_indices"]),
            frozen_stages=published["backbone"]["frozen_stages"],
        ),
        neck=NeckConfig(
            num_levels=published["neck"]["num_outs"], num_groups=published["neck"]["norm_cfg"]["num_groups"]
        ),
        position_encoding=PositionEncodingConfig(
            temperature=position.get("temperature", 10000.0), offset=position["offset"]
        ),
        encoder=layers["encoder"],
        decoder=layers["decoder"],
        denoising=_denoising(published["dn_cfg"]) if dino else None,
        d3q=D3QConfig(
            queries_per_object=published["t"],
            min_queries=min(published.get("min_queries") or PUBLISHED_MIN_QUERIES[meta["model"]], num_queries),
            max_queries=published["max_queries"],
        )
        if d3q
        else None,
    )
    return Config(
        model=model,
        criterion=_criterion(published, dino=dino, d3q=d3q),
        data=DataConfig(
            root="unused",
            train=SplitConfig(annotations="unused", images="unused"),
            val=SplitConfig(annotations="unused", images="unused"),
        ),
        optim=_optim(meta.get("optim")),
    )


def _stack(published: dict) -> TransformerConfig:
    layer = published["layer_cfg"]
    attention = layer.get("cross_attn_cfg") or layer["self_attn_cfg"]
    return TransformerConfig(
        num_layers=published["num_layers"],
        num_heads=attention["num_heads"],
        num_points=attention["num_points"],
        ffn_dim=layer["ffn_cfg"]["feedforward_channels"],
        dropout=layer["ffn_cfg"]["ffn_drop"],
    )


def _denoising(published: dict) -> DenoisingConfig:
    return DenoisingConfig(
        num_queries=published["group_cfg"]["num_dn_queries"],
        label_noise=published["label_noise_scale"],
        box_noise=published["box_noise_scale"],
    )


def _criterion(published: dict, *, dino: bool, d3q: bool) -> CriterionConfig:
    head, assigners = published["bbox_head"], published["train_cfg"]
    boxes = {"box_weight": head["loss_bbox"]["loss_weight"], "giou_weight": head["loss_iou"]["loss_weight"]}
    focal = SetLossConfig(
        classification="focal",
        class_cost=assigners["assigner"]["match_costs"][0]["weight"],
        class_weight=head["loss_cls"]["loss_weight"],
        alpha=head["loss_cls"]["alpha"],
        gamma=head["loss_cls"]["gamma"],
        **boxes,
    )
    softmax = focal
    if d3q:
        softmax = SetLossConfig(
            classification="softmax",
            class_cost=assigners["assigner_d"]["match_costs"][0]["weight"],
            class_weight=head["loss_d_cls"]["loss_weight"],
            no_object_weight=head["loss_d_cls"]["bg_cls_weight"],
            **boxes,
        )
    return CriterionConfig(
        box_distance="log_size_l1" if d3q else "l1",
        decoder=softmax,
        encoder=focal,
        encoder_tokens="selected" if dino and not d3q else "all",
        decoder_normalizer="image" if d3q and not dino else "batch",
        drop_off_centre_matches=bool(assigners["assigner"].get("filter_lowq")),
        density_weight=head["loss_density_map"]["loss_weight"] if d3q else 0.0,
    )


def _optim(published: dict | None) -> OptimConfig:
    if published is None:
        return OptimConfig()
    factors = {key: value["lr_mult"] for key, value in published["paramwise_cfg"]["custom_keys"].items()}
    return OptimConfig(
        lr=published["optimizer"]["lr"],
        weight_decay=published["optimizer"]["weight_decay"],
        clip_grad_norm=published["clip_grad"]["max_norm"],
        backbone_lr_factor=factors["backbone"],
        sampling_offsets_lr_factor=factors.get("sampling_offsets", 1.0),
    )


def detector_of(golden: Golden, config: Config) -> torch.nn.Module:
    """The detector with the recorded weights: every tensor of both sides is used."""
    detector = build_detector(config)
    state = {rename(golden, key.removeprefix("sd/")): golden[key] for key in golden.keys("sd/")}
    own = {key for key in detector.state_dict() if not key.endswith("num_batches_tracked")}
    assert set(state) == own
    detector.load_state_dict(state, strict=False)
    return detector


def rename(golden: Golden, name: str) -> str:
    layers = golden.meta["config"]["decoder"]["num_layers"]
    detector = "dino" if golden.model.startswith("dino") else "deformable_detr"
    return mmdetection_naming(detector=detector, num_layers=layers).to_here(name)


def padding_of(images: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
    mask = torch.ones(len(images), *images.shape[-2:], dtype=torch.bool)
    for i, (height, width) in enumerate(sizes):
        mask[i, :height, :width] = False
    return mask
