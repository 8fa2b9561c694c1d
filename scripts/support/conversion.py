"""Conversion of checkpoints, for scripts/convert_checkpoint.py: which tensors are loaded, kept and skipped."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from configs.loader import dump_config, load_config, parse_config
from configs.schema import Config
from datasets.annotations.table import read_annotations
from engine.checkpoints.checkpoint import load_checkpoint, load_weights, save_checkpoint, weights_checkpoint
from engine.checkpoints.coco_names import coco91
from engine.checkpoints.foreign import ForeignCheckpoint, read_foreign_checkpoint
from engine.checkpoints.key_mapping import (
    CLASS_TENSORS,
    Naming,
    mmdetection_naming,
    original_naming,
    to_mmdetection,
    translate,
)
from engine.checkpoints.sealed_file import CheckpointError, write_archive
from engine.commands.exit_codes import UsageError
from engine.commands.resolve import RULES, fill_input_statistics
from models.backbones.catalog import CATALOG
from models.backbones.weights import load_backbone_weights, strip_prefixes
from models.build import build_detector

SHOWN = 10


@dataclass(frozen=True)
class Conversion:
    """Which tensors were loaded, kept and skipped."""

    loaded: list[str]
    """Names here"""
    reset: list[str] = field(default_factory=list)
    """Names here that kept initial values"""
    skipped: dict[str, list[str]] = field(default_factory=dict)
    """Why -> names in the file"""
    tables: list[str] = field(default_factory=list)
    """Query tables that were loaded in part, a line each"""

    def show(self) -> str:
        rows = [("loaded", self.loaded), *((f"skipped, {why}", names) for why, names in self.skipped.items())]
        rows += [("kept at initial values", self.reset), ("loaded in part", self.tables)]
        return "\n".join(f"{len(names):5d}  {title}{_first(names, ': ')}" for title, names in rows)


def convert(options: argparse.Namespace) -> None:
    """Write --out, and print what it holds."""
    if options.target is None:
        convert_to_here(options)
    else:
        convert_to_mmdetection(options)
    with open(options.out, "rb") as file:
        print(f"wrote {options.out}, sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}")


def convert_to_here(options: argparse.Namespace) -> None:
    config = fill_input_statistics(load_config(options.config, options.set, RULES))
    torch.manual_seed(config.runtime.seed)  # of tensors that keep their initial values
    foreign = None if options.source == "torchvision" else read_foreign_checkpoint(options.file)
    if foreign is not None:
        state, prefix = strip_prefixes(foreign.state)
        foreign = replace(foreign, state=state)
    categories = choose_categories(options, config, foreign)
    config = replace(config, model=replace(config.model, num_classes=len(categories)))
    detector = build_detector(config)
    if foreign is None:
        report = load_backbone(detector, options.file, config)
    else:
        other_classes = foreign.categories not in (None, categories)
        report = load_detector(detector, foreign, options, config, other_classes=other_classes)
    checkpoint = weights_checkpoint(detector.state_dict(), config=dump_config(config), categories=categories)
    _write(options.out, lambda path: save_checkpoint(path, checkpoint))
    print(f"{options.file}: {config.model.detector}, {len(categories)} classes: {_first(categories)}")
    if foreign is not None:
        print(f"weights: {foreign.place}{f', all names without their {prefix}' if prefix else ''}")
    print(report.show())


def convert_to_mmdetection(options: argparse.Namespace) -> None:
    checkpoint = load_checkpoint(options.file)
    config = parse_config(checkpoint.config, f"{options.file} (config)", rules=RULES)
    name = config.model.backbone.name
    if not CATALOG[name].is_torchvision:
        raise CheckpointError(f"{options.file}: mmdetection has no backbone {name} with these names")
    state = to_mmdetection(checkpoint.best_weights, naming_of("mmdetection", config))
    meta = {"dataset_meta": {"classes": tuple(checkpoint.categories)}}
    _write(options.out, lambda path: write_archive(path, {"meta": meta, "state_dict": state}))
    print(f"{options.file}: {config.model.detector}, {len(checkpoint.categories)} classes")
    print(f"{len(checkpoint.model):5d}  converted: {_first(list(state))}")
    print(f"{len(state) - len(checkpoint.model):5d}  batch counters added, all 0")


def choose_categories(options: argparse.Namespace, config: Config, foreign: ForeignCheckpoint | None) -> list[str]:
    """The given class names, or else the file's. Raises unless their number is the config's, if it has one, and they
    fit the file."""
    given, expected = None, config.model.num_classes
    if options.annotations is not None:
        table = read_annotations(options.annotations, on_bad_annotation="skip", num_classes=expected)
        given = list(table.categories)
    elif options.categories is not None:
        given = coco91() if options.categories == "coco91" else [name.strip() for name in options.categories.split(",")]
        if "" in given or len(set(given)) != len(given):
            raise UsageError(f"--categories {options.categories}: expected different names, separated by commas")
    theirs = foreign.categories if foreign is not None else None
    names = given if given is not None else theirs
    if names is None:
        raise UsageError(f"{options.file} has no class names; give --categories A,B,... or --annotations JSON")
    if expected is not None and len(names) != expected:
        raise CheckpointError(
            f"{options.file}: {len(names)} classes ({_first(names)}), but model.num_classes of {options.config} is "
            f"{expected}; give --set model.num_classes={len(names)}, or --reset-head and other --categories"
        )
    if given is not None and theirs is not None and given != theirs and not options.reset_head:
        raise CheckpointError(
            f"{options.file}: its classes are {_first(theirs)}, not {_first(given)}; give no names to use its own, or "
            "--reset-head to start other classes"
        )
    return names


def naming_of(project: str, config: Config) -> Naming:
    model = config.model
    if project == "mmdetection":
        return mmdetection_naming(detector=model.detector, num_layers=model.decoder.num_layers)
    return original_naming(
        detector=model.detector,
        num_layers=model.decoder.num_layers,
        num_maps=len(model.backbone.out_strides),
        num_levels=model.neck.num_levels,
    )


def load_detector(
    detector: nn.Module, foreign: ForeignCheckpoint, options: argparse.Namespace, config: Config, *, other_classes: bool
) -> Conversion:
    """Raises CheckpointError with counts and the first ten names.

    other_classes   tensors of classes keep their initial values, even if their shapes fit
    """
    if options.source == "original" and "transformer.decoder.bbox_embed.0.layers.0.weight" not in foreign.state:
        raise CheckpointError(
            f"{options.file}: no transformer.decoder.bbox_embed, so not a DINO or Deformable DETR with box refinement; "
            "no detector here computes what this file was trained for"
        )
    own = detector.state_dict()
    translated = translate(foreign.state, naming_of(options.source, config), own)
    state, skipped = translated.state, dict(translated.skipped)
    unknown = [name for name in state if name not in own]
    if any(name.startswith("neck.") and name.endswith(".0.bias") for name in unknown):
        raise CheckpointError(
            f"{options.file}: its neck has biases, that of {options.config} has none; give --set model.neck.bias=true"
        )
    if unknown:
        skipped["of which this config's detector has none"] = unknown
    if other_classes:
        skipped["of other classes"] = [name for name in state if name.startswith(CLASS_TENSORS)]
        state = {name: value for name, value in state.items() if not name.startswith(CLASS_TENSORS)}
    loaded = load_weights(
        detector, state, source=str(options.file), starts=True, reset=options.reset_head, remedy="--reset-head"
    )
    names = [name for name in own if name not in loaded.initial and name not in loaded.tables]
    return Conversion(loaded=names, reset=loaded.initial, skipped=skipped, tables=loaded.describe_tables())


def load_backbone(detector: nn.Module, path: Path, config: Config) -> Conversion:
    """Load a backbone like model.backbone.weights does. Raises WeightsError."""
    backbone = detector.backbone
    assert isinstance(backbone, nn.Module)
    load_backbone_weights(backbone, name=config.model.backbone.name, weights=str(path))  # type: ignore[arg-type]
    bad = [name for name, value in backbone.state_dict().items() if not bool(value.isfinite().all())]
    if bad:
        raise CheckpointError(f"{path}: NaN or infinite values in {len(bad)} tensors; first: {_first(bad)}")
    names = list(detector.state_dict())
    return Conversion(
        loaded=[name for name in names if name.startswith("backbone.")],
        reset=[name for name in names if not name.startswith("backbone.")],
    )


def _write(path: Path, save: Callable[[Path], None]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error}; choose another --out") from error


def _first(names: list[str], lead: str = "") -> str:
    if not names:
        return ""
    return lead + ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
