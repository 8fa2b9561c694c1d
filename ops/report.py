"""Describe which backend computes deformable attention on a device, for the first lines of a run."""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from ops import cuda_kernels, devices
from ops.backends import choose_backend, is_forced
from ops.library import loaded_library, why_missing


class Choice(NamedTuple):
    """The backend of a device, and its library, or the reason why it has none."""

    backend: str
    device: str
    remark: str

    def __str__(self) -> str:
        return f"{self.backend} on {self.device}{f' ({self.remark})' if self.remark else ''}"


def describe_backend(device: torch.device) -> Choice:
    """The backend of a device. Raises ValueError if the forced backend cannot run there."""
    index = None if device.type != "cuda" else device.index if device.index is not None else torch.cuda.current_device()
    backend = choose_backend(device.type, index)
    compiled = backend in ("cpp", "cuda")
    remark = str(loaded_library() or "") if compiled else _why_not_compiled(device.type, index)
    return Choice(backend, device.type if index is None else f"cuda:{index}", remark)


def devices_here(like: torch.device) -> list[torch.device]:
    """All devices of this machine of the same type."""
    if like.type != "cuda":
        return [like]
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


def together(choices: Iterable[Choice]) -> list[Choice]:
    """Merge devices with the same backend and remark: "cuda:0, cuda:1"."""
    devices_of: dict[tuple[str, str], dict[str, None]] = {}
    for choice in choices:
        devices_of.setdefault((choice.backend, choice.remark), {})[choice.device] = None
    return [Choice(backend, ", ".join(names), remark) for (backend, remark), names in devices_of.items()]


def _why_not_compiled(device_type: str, index: int | None) -> str:
    """Why no kernels are used; empty for devices that have no kernels."""
    if is_forced():
        return "as D3Q_OPS_BACKEND says"
    if device_type not in ("cpu", "cuda"):
        return ""
    if loaded_library() is None:
        return why_missing()
    if device_type == "cpu":
        return f"{loaded_library()} has no CPU kernels; run python -m ops.build"
    if index is not None and cuda_kernels.are_loaded():
        return str(devices.fault_on(index))
    return f"{loaded_library()} has no CUDA kernels; run python -m ops.build where there is an nvcc"
