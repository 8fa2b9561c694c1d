"""Checkpoints: everything a run needs to go on."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from engine.checkpoints.sealed_file import CheckpointError, DamagedError, is_sealed, read_archive, write_archive

FORMAT = 3
SINCE_3: dict[str, Any] = {
    "average": {},
    "meter": {},
    "skipped": 0,
    "skipped_in_row": 0,
    "replaced": 0,
    "seconds": 0.0,
    "data": "",
}
ADDED_SINCE: dict[int, dict[str, Any]] = {1: {"batch": 0, "batches": 0, **SINCE_3}, 2: SINCE_3}
"""Of each earlier format: what it lacks, and what that was"""
FORMATS = (*ADDED_SINCE, FORMAT)
QUERY_TABLES = ("content_queries.weight", "query_maker.content.weight")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after any step. Tensors and plain values only."""

    model: dict[str, Tensor]
    """State dict of the detector"""
    config: str
    """The resolved config as YAML"""
    categories: list[str]
    """Class names, in the order of the labels"""
    epoch: int
    """Finished epochs"""
    step: int
    """Finished optimiser steps"""
    optimizer: dict[str, Any]
    """State dict"""
    scaler: dict[str, Any]
    """State dict of the gradient scaler; empty without float16"""
    random_states: list[Tensor]
    """Random number state of each process"""
    best_score: float
    """Best evaluation so far; -1 before the first"""
    evaluated: bool
    """Whether the evaluation due after the last finished epoch is done"""
    batch: int = 0
    """Finished batches of the epoch in progress, per process"""
    batches: int = 0
    """Batches of an epoch, per process"""
    average: dict[str, Tensor] = field(default_factory=dict)
    """State dict of the averaged detector; empty without optim.ema_decay"""
    meter: dict[str, Any] = field(default_factory=dict)
    """Sums since the last record of the metrics log"""
    skipped: int = 0
    """Steps left out, as a loss or gradient was not finite"""
    skipped_in_row: int = 0
    """Those since the last good one"""
    replaced: int = 0
    """Images that could not be read, in whose place others came"""
    seconds: float = 0.0
    """Time so far, over all interruptions"""
    data: str = ""
    """Digest of the training data; empty where it is not known"""

    @property
    def best_weights(self) -> dict[str, Tensor]:
        """The weights to evaluate and to start from: the averaged ones where there are."""
        return self.average or self.model

    @property
    def place(self) -> str:
        """Where in its run it was taken, for messages."""
        return f"epoch {self.epoch}, step {self.step}"

    def content(self) -> dict[str, Any]:
        """What the file holds."""
        return {"format": FORMAT, **{entry.name: getattr(self, entry.name) for entry in fields(self)}}

    def require_training_state(self, path: Path) -> None:
        """Raises CheckpointError for one that cannot be trained on."""
        if not self.optimizer:
            raise CheckpointError(
                f"{path}: holds weights alone, no optimiser state to go on with; start a new run from it: "
                f"--config FILE --set init_from={path}"
            )


def weights_checkpoint(model: dict[str, Tensor], *, config: str, categories: list[str]) -> Checkpoint:
    """Weights without the state of a run: to evaluate, or to start from with init_from."""
    return Checkpoint(
        model=model,
        config=config,
        categories=categories,
        epoch=0,
        step=0,
        optimizer={},
        scaler={},
        random_states=[],
        best_score=-1.0,
        evaluated=True,
    )


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write beside the old file, then replace it: a killed process leaves the old one whole."""
    write_archive(path, checkpoint.content())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read and verify a checkpoint of this project. Raises CheckpointError."""
    content = read_archive(path)
    found = content.get("format") if isinstance(content, Mapping) else None
    if not isinstance(found, int) or found not in FORMATS:
        held = sorted(map(str, content))[:10] if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{path}: not a checkpoint of this project (format {FORMAT}); it holds {held}. "
            "Convert weights of other projects with scripts/convert_checkpoint.py"
        )
    if found != 1 and not is_sealed(path):
        raise DamagedError(f"{path}: without the checksum at its end; take an earlier one")
    content = {**content, **ADDED_SINCE.get(found, {})}
    names = [entry.name for entry in fields(Checkpoint)]
    missing = [name for name in names if name not in content]
    if missing:
        raise CheckpointError(f"{path}: incomplete checkpoint, without {', '.join(missing)}")
    wrong = [name for name, hint in get_type_hints(Checkpoint).items() if not _fits(content[name], hint)]
    if wrong:
        raise CheckpointError(f"{path}: not written by this project: {', '.join(wrong)} of another type")
    return Checkpoint(**{name: content[name] for name in names})


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type such as dict[str, Tensor]."""
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
    """What became of a state dict in a detector."""

    initial: list[str] = field(default_factory=list)
    """Names of tensors that kept their initial values"""
    tables: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Query tables of another number of rows -> rows of the file, rows of the detector; it has the first of both"""

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
    remedy: str = "init_from with reset_head: true",
) -> Loaded:
    """Copy a state dict into the detector; every tensor must find its place.

    starts    a training starts from it: a query table of another number of rows takes the first rows of both
    reset     with `starts`: tensors that the file lacks or has in another shape keep their initial values (class heads
              of another data set), and tensors that the detector lacks are left out
    remedy    what sets `reset`, for the message

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
    """Query tables -> rows in the state, and rows here, where only these differ."""
    found = {}
    for name in QUERY_TABLES:
        if name in own and name in state and state[name].ndim == own[name].ndim:
            theirs, ours = state[name].shape, own[name].shape
            if theirs[1:] == ours[1:] and theirs[0] != ours[0]:
                found[name] = (theirs[0], ours[0])
    return found


def random_state(device: torch.device) -> Tensor:
    """State of the random number generators of this process: CPU, then its GPU."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)


def restore_random_state(state: Tensor, device: torch.device) -> None:
    """Undo of `random_state`."""
    length = len(torch.get_rng_state())
    torch.set_rng_state(state[:length])
    if device.type == "cuda" and len(state) > length:
        torch.cuda.set_rng_state(state[length:], device)
