"""Checkpoints: the complete state of a training run, and its upgrade from earlier file formats."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from engine.checkpoints.sealed_file import CheckpointError, DamagedError, is_sealed, read_archive, write_archive

FORMAT = 6
FORMATS = (1, 2, 3, 4, 5, FORMAT)
"""Formats that are read; `upgrade` turns the earlier ones into FORMAT"""
QUERY_TABLES = ("content_queries.weight", "query_maker.content.weight")

Record = TypeVar("Record")


@dataclass
class Progress:
    """How far a training run is. The training loop counts in it, and a checkpoint holds a copy."""

    epoch: int = 0
    """Finished epochs"""
    batch: int = 0
    """Finished batches of the epoch in progress, per process"""
    step: int = 0
    """Finished optimiser steps, skipped ones included"""
    skipped: int = 0
    """Steps skipped because a loss or gradient was not finite"""
    skipped_in_row: int = 0
    """Those since the last step that was taken"""
    replaced: int = 0
    """Unreadable images that were replaced by others"""
    seconds: float = 0.0
    """Training time so far, over all interruptions"""
    best_score: float = -1.0
    """Best evaluation so far; -1 before the first"""
    evaluated: bool = True
    """Whether the evaluation due after the last finished epoch is done"""
    stale: int = 0
    """Evaluations since the best one"""

    def advance(self, *, batches: int) -> None:
        """Count an optimiser step of so many batches."""
        self.step += 1
        self.batch += batches

    @property
    def position(self) -> tuple[int, int, int]:
        """(epoch, batch, step): equal for two processes, or two files, at the same step."""
        return self.epoch, self.batch, self.step

    def __str__(self) -> str:
        return f"epoch {self.epoch}, step {self.step}"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after any step."""

    model: dict[str, Tensor]
    """State dict of the detector"""
    config: str
    """The resolved config as YAML"""
    categories: list[str]
    """Class names, in the order of the labels"""
    progress: Progress
    """How far the run is"""
    optimizer: dict[str, Any]
    """State dict"""
    scaler: dict[str, Any]
    """State dict of the gradient scaler; empty without float16"""
    random_states: list[Tensor]
    """Random number state of each process"""
    batches: int = 0
    """Batches of an epoch, per process; 0 if unknown"""
    average: dict[str, Tensor] = field(default_factory=dict)
    """State dict of the averaged detector; empty without optim.ema_decay"""
    meter: dict[str, Any] = field(default_factory=dict)
    """Sums since the last record of the metrics log"""
    data: str = ""
    """Digest of the training data; empty if unknown"""
    category_ids: list[int] = field(default_factory=list)
    """Category id of each class in the annotation file; empty if unknown"""
    resize_factor: float = 0.0
    """Network pixels per pixel of the image file, median of the training images; 0 if unknown"""

    @property
    def best_weights(self) -> dict[str, Tensor]:
        """The weights to evaluate and to start from: the average if the run keeps one."""
        return self.average or self.model

    def content(self) -> dict[str, Any]:
        """Content of the file: tensors and plain values only."""
        entries = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {"format": FORMAT, **entries, "progress": asdict(self.progress)}

    def require_training_state(self, path: Path) -> None:
        """Raises CheckpointError unless the checkpoint holds what resuming needs."""
        if not self.optimizer:
            raise CheckpointError(
                f"{path}: holds weights only, no optimiser state to resume with; start a new run from it: "
                f"--config FILE --set init_from={path}"
            )


def weights_checkpoint(
    model: dict[str, Tensor],
    *,
    config: str,
    categories: list[str],
    category_ids: list[int] | None = None,
    resize_factor: float = 0.0,
) -> Checkpoint:
    """A checkpoint of weights only: to evaluate, to predict with, or to start a run from with init_from."""
    return Checkpoint(
        model=model,
        config=config,
        categories=categories,
        progress=Progress(),
        optimizer={},
        scaler={},
        random_states=[],
        category_ids=category_ids or [],
        resize_factor=resize_factor,
    )


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a temporary file, then replace the old one: a killed process leaves the old file intact."""
    write_archive(path, checkpoint.content())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read, verify and upgrade a checkpoint of this project. Raises CheckpointError."""
    content = read_archive(path)
    found = content.get("format") if isinstance(content, Mapping) else None
    if not isinstance(found, int) or found not in FORMATS:
        held = sorted(map(str, content))[:10] if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{path}: not a checkpoint of this project (format {FORMAT}); it holds {held}. "
            "Convert weights of other projects with scripts/convert_checkpoint.py"
        )
    if found != 1 and not is_sealed(path):
        raise DamagedError(f"{path}: no checksum at its end; take an earlier one")
    content = upgrade(content)
    if isinstance(content.get("progress"), Mapping):
        content["progress"] = _read_record(path, Progress, content["progress"], prefix="progress.")
    return _read_record(path, Checkpoint, content)


def upgrade(content: Mapping[str, Any]) -> dict[str, Any]:
    """Content of a file of any of FORMATS -> content in the current format.

    1   no seal, saved at the end of an epoch only, and lacks what format 2 lacks
    2   no average, meter, training data digest, time, or counts of skipped steps and replaced images
    3   the fields of Progress are entries of their own, as in 1 and 2
    4   no category ids or resize factor, as in 1 to 3
    5   no count of evaluations since the best one, as in 1 to 4
    """
    upgraded = dict(content)
    if content["format"] == 1:
        upgraded |= {"batch": 0, "batches": 0}
    if content["format"] <= 2:
        upgraded |= {"average": {}, "meter": {}, "data": "", "seconds": 0.0}
        upgraded |= {"skipped": 0, "skipped_in_row": 0, "replaced": 0}
    if content["format"] <= 3:
        names = [entry.name for entry in fields(Progress) if entry.name in upgraded]
        upgraded["progress"] = {name: upgraded.pop(name) for name in names}
    if content["format"] <= 4:
        upgraded |= {"category_ids": [], "resize_factor": 0.0}
    if content["format"] <= 5 and isinstance(upgraded.get("progress"), Mapping):
        upgraded["progress"] = {"stale": 0, **upgraded["progress"]}
    return upgraded | {"format": FORMAT}


def _read_record(path: Path, kind: type[Record], content: Mapping[str, Any], *, prefix: str = "") -> Record:
    """A dataclass from its fields in a file. Raises CheckpointError for a field that is missing or of another type."""
    hints = get_type_hints(kind)
    missing = [f"{prefix}{name}" for name in hints if name not in content]
    if missing:
        raise CheckpointError(f"{path}: incomplete checkpoint, without {', '.join(missing)}")
    wrong = [f"{prefix}{name}" for name, hint in hints.items() if not _fits(content[name], hint)]
    if wrong:
        raise CheckpointError(f"{path}: not written by this project: {', '.join(wrong)} of another type")
    return kind(**{name: content[name] for name in hints})


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has a type such as dict[str, Tensor]."""
    kind, arguments = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind in (bool, int, float):
        return type(value) is kind or (kind is float and type(value) is int)
    if not isinstance(value, kind):
        return False
    if kind is dict:
        return all(_fits(key, arguments[0]) and _fits(entry, arguments[1]) for key, entry in value.items())
    return kind is not list or all(_fits(entry, arguments[0]) for entry in value)


@dataclass(frozen=True)
class Loaded:
    """Result of loading a state dict into a detector."""

    initial: list[str] = field(default_factory=list)
    """Names of tensors that keep their initial values"""
    tables: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Query tables of different lengths -> rows in the file, rows in the detector; the shared first rows are loaded"""

    def describe_tables(self) -> list[str]:
        """One line per query table."""
        return [
            f"{name}: all {theirs} trained rows, {ours - theirs} more at initial values"
            if theirs < ours
            else f"{name}: the first {ours} of {theirs} trained rows"
            for name, (theirs, ours) in self.tables.items()
        ]


def load_weights(
    detector: nn.Module,
    state: Mapping[str, Tensor],
    *,
    source: str,
    starts: bool = False,
    reset: bool = False,
    remedy: str = "init_from with reset_head: true (or by_name)",
) -> Loaded:
    """Copy a state dict into the detector; names and shapes must match.

    starts    a new run starts from it: of query tables of different lengths, the shared first rows are loaded
    reset     with `starts`: tensors that are missing or of another shape keep their initial values (class heads of
              another data set), and unexpected ones are dropped
    remedy    how the user sets `reset`, for the message

    Raises CheckpointError with counts and the first ten names.
    """
    own = detector.state_dict()
    tables = _tables_of_other_length(state, own) if starts else {}
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    mismatched = [name for name in own if name in state and state[name].shape != own[name].shape and name not in tables]
    if (missing or unexpected or mismatched) and not reset:
        first = ", ".join((missing + unexpected + mismatched)[:10])
        raise CheckpointError(
            f"{source}: another architecture: {len(missing)} tensors missing, {len(unexpected)} unexpected, "
            f"{len(mismatched)} of another shape; first: {first}. Use the config it was trained with, or "
            f"{remedy} to start from what fits"
        )
    if len(missing) + len(mismatched) == len(own):
        raise CheckpointError(f"{source}: not one of its {len(state)} tensors fits the detector")
    loaded = {name: value for name, value in state.items() if name in own and name not in mismatched}
    for name, (theirs, ours) in tables.items():
        rows = min(theirs, ours)
        loaded[name] = torch.cat([state[name][:rows].to(own[name]), own[name][rows:]])
    detector.load_state_dict(loaded, strict=False)
    return Loaded(missing + mismatched, tables)


def _tables_of_other_length(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Query tables that differ in length only -> rows in the state, rows in the detector."""
    found = {}
    for name in QUERY_TABLES:
        if name in own and name in state and state[name].ndim == own[name].ndim:
            theirs, ours = state[name].shape, own[name].shape
            if theirs[1:] == ours[1:] and theirs[0] != ours[0]:
                found[name] = (theirs[0], ours[0])
    return found


def random_state(device: torch.device) -> Tensor:
    """State of this rank's random number generators: CPU, then its GPU."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def restore_random_state(state: Tensor, device: torch.device) -> None:
    """Set the generators to a state from `random_state`."""
    length = len(torch.get_rng_state())
    torch.set_rng_state(state[:length])
    if device.type == "cuda" and len(state) > length:
        torch.cuda.set_rng_state(state[length:], device)
