"""Read checkpoints of other projects without their code, and without executing any.

Such files hold more than tensors: mmengine's log buffers and configs, numpy scalars, argparse namespaces. A fixed list
of these names is replaced by inert stand-ins; any other name is refused.
"""

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoints.checkpoint import FORMATS
from engine.checkpoints.sealed_file import CheckpointError, read_archive


class Inert:
    """Inert stand-in for a class or function named in a file: accepts any arguments, does nothing."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


_INERT = (
    "argparse.Namespace",
    "builtins.getattr",  # how pickle's protocol 2 writes methods, such as those of a log buffer
    "mmengine.config.config.Config",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Bool", "Float32", "Float64", "Int32", "Int64")),
)
# torch fills dictionaries item by item, and only of exact types: a stand-in class would not work.
STAND_INS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    *((Inert, name) for name in _INERT),
    (OrderedDict, "mmengine.config.config.ConfigDict"),
]


WRAPPERS = ("state_dict", "model", "model_state_dict", "module", "params", "ema", "ema_model")
"""Keys under which files hold their weights; the first one found counts"""
MAX_WRAPPERS = 3
"""Depth to which such keys are nested"""


@dataclass(frozen=True)
class ForeignCheckpoint:
    """The usable content of another project's checkpoint."""

    state: dict[str, Tensor]
    """Every tensor under the name that the file gives it"""
    categories: list[str] | None
    """Class names, if the file has them (mmdetection's meta.dataset_meta.classes)"""
    place: str
    """Where in the file the weights were found, and which other weights were not read"""


def read_foreign_checkpoint(path: Path) -> ForeignCheckpoint:
    """Read the tensors under one of WRAPPERS, nested ones too, or at the top, and the class names.

    Raises CheckpointError for a file that is missing, damaged, names an unknown class or function, holds no state
    dict, or has weights that are not finite.
    """
    content = _read(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds {type(content).__name__}, not a dictionary of weights")
    if content.get("format") in FORMATS:
        raise CheckpointError(f"{path}: already a checkpoint of this project; it needs no conversion")
    state, place = _find_state(content)
    if not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise CheckpointError(
            f"{path}: no tensors under {', '.join(WRAPPERS)} or at the top; it holds {sorted(map(str, state))[:10]}"
        )
    _check_finite(path, state)
    return ForeignCheckpoint(dict(state), _categories(content), place)


def _find_state(content: Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The state dict in a file, and where it was, in words."""
    place, others = "", ""
    for _ in range(MAX_WRAPPERS):
        keys = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
        if not keys:
            break
        content, place = content[keys[0]], f"{place}.{keys[0]}".removeprefix(".")
        others += f"; not {', '.join(keys[1:])}" if keys[1:] else ""
    return content, f"under {place}{others}" if place else "at the top"


def _read(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(STAND_INS):
            return read_archive(path, old_format=True)
    except CheckpointError as error:
        name = re.search(r"GLOBAL (\S+)", str(error.__cause__))
        if name is None:
            raise
        raise CheckpointError(
            f"{path}: names {name[1]}, which is not on the list of known classes; refused, and no code of it "
            "was executed. Save its tensors alone where it was made: torch.save(model.state_dict(), file)"
        ) from error


def _check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    bad = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise CheckpointError(
            f"{path}: NaN or infinite values in {len(bad)} of {len(state)} tensors; first: {', '.join(bad[:10])}. "
            "Take another file"
        )


def _categories(content: Mapping[str, Any]) -> list[str] | None:
    meta = content.get("meta")
    data = meta.get("dataset_meta") if isinstance(meta, Mapping) else None
    names = data.get("classes") if isinstance(data, Mapping) else None
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        return None
    return list(names)
