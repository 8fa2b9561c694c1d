"""Files like those of mmengine, made without mmengine: its classes exist only while the file is written."""

import argparse
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch


def stand_in_class(full_name: str, base: type = object) -> type:
    module, _, name = full_name.rpartition(".")
    return type(name, (base,), {"__module__": module})


def save_with_classes(path: Path, make: Any, *classes: type, **options: Any) -> None:
    """torch.save(make()), while the classes can be imported from the modules that they name."""
    modules: dict[str, types.ModuleType] = {}
    for cls in classes:
        parts = cls.__module__.split(".")
        for depth in range(1, len(parts) + 1):
            modules.setdefault(".".join(parts[:depth]), types.ModuleType(".".join(parts[:depth])))
        setattr(modules[cls.__module__], cls.__name__, cls)
    with mock.patch.dict(sys.modules, modules):
        torch.save(make(), path, **options)


def save_like_mmengine(path: Path, state: dict[str, torch.Tensor], classes: list[str] | None) -> None:
    """What mmengine's runner saves: log buffers of numpy arrays, a configuration, numpy scalars, class names."""
    buffer_class = stand_in_class("mmengine.logging.history_buffer.HistoryBuffer")
    buffer_class.mean = types.FunctionType((lambda self: 0).__code__, {}, "mean")  # type: ignore[attr-defined]
    buffer_class.mean.__module__ = buffer_class.__module__  # type: ignore[attr-defined]
    buffer_class.mean.__qualname__ = "HistoryBuffer.mean"  # type: ignore[attr-defined]
    config_dict = stand_in_class("mmengine.config.config.ConfigDict", dict)

    def content() -> dict[str, Any]:
        buffer = buffer_class()
        buffer.__dict__ = {
            "_log_history": np.linspace(0, 1, 5),
            "_count_history": np.arange(5),
            "max_length": 1000,
            "statistics": {"mean": buffer_class.mean},  # type: ignore[attr-defined]
        }
        meta: dict[str, Any] = {"epoch": 24, "cfg": config_dict(model=config_dict(type="DINO_D3Q"), lr=[1e-4])}
        if classes is not None:
            meta["dataset_meta"] = {"classes": tuple(classes), "palette": [(1, 2, 3)]}
        return {
            "meta": meta,
            "state_dict": state,
            "message_hub": {"log_scalars": {"train/loss": buffer}, "runtime_info": {"best": np.float64(0.3)}},
            "args": argparse.Namespace(lr=1e-4),
        }

    save_with_classes(path, content, buffer_class, config_dict)
