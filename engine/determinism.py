"""The same bits from run to run."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

GPU_NOTICE = (
    "runtime.deterministic: on a GPU the deformable attention is deterministic too, by gradients in pure PyTorch that "
    "take longer; torch warns once of each operation of which it has no deterministic form"
)


@contextmanager
def determinism(device: torch.device, *, wanted: bool) -> Iterator[None]:
    """Inside, torch takes deterministic algorithms only, where wanted; enter before the first use of the GPU.

    On a CPU an operation without one is an error; on a GPU, where detectors need some, a warning.
    """
    if not wanted:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    benchmark, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
    torch.use_deterministic_algorithms(True, warn_only=device.type == "cuda")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.benchmark = benchmark
