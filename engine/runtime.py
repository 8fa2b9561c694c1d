"""Settings of torch for a run, none of which changes what is computed: acceleration, determinism, memory."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from configs.schema import RuntimeConfig

COMPILED_PARTS = ("backbone", "encoder")
"""Their shapes follow from the images alone; later ones change with the number of objects, batch by batch"""
GPU_NOTICE = (
    "runtime.deterministic: on a GPU the deformable attention is deterministic too, by gradients in pure PyTorch that "
    "take longer; torch warns once of each operation without a deterministic form"
)
FIRST_USE = 64 * 2**20
"""Bytes that kernels and thread pools take on a CPU when they first run; measured with a full-size detector"""


def accelerate(detector: nn.Module, runtime: RuntimeConfig, *, device_type: str) -> None:
    """Apply runtime.channels_last and runtime.compile in place; names and layout of the weights stay.

    Call it before the detector is wrapped in DistributedDataParallel.
    """
    # GPUs only: on CPUs it is not faster with ResNets, and oneDNN's backward pass of strided 1x1 convolutions of fewer
    # than 8 channels writes out of bounds (oneDNN issue 6035; seen with torch 2.14.1).
    if runtime.channels_last and device_type == "cuda":
        # The images only: convolutions pass the layout on, and the fused optimiser needs contiguous weights.
        detector.get_submodule("backbone").register_forward_pre_hook(_with_channels_last)
    if runtime.compile:
        for name in COMPILED_PARTS:
            detector.get_submodule(name).compile(fullgraph=True)


def _with_channels_last(backbone: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    (images,) = inputs
    return (images.contiguous(memory_format=torch.channels_last),)


@contextmanager
def determinism(device: torch.device, *, enabled: bool) -> Iterator[None]:
    """Use deterministic algorithms inside, if enabled. Enter before the first use of the GPU.

    An operation without one is an error on a CPU, and a warning on a GPU, where detectors need some.
    """
    if not enabled:
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


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far, MiB: of tensors on the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def describe_room(*, needed: int, free: int, batch: str) -> str:
    """One line: whether a training step has enough memory, and if not, what to change.

    needed   predicted bytes in addition to those already in use
    free     bytes
    batch    the step's batch, in words
    """
    sizes = f"a training step on {batch} needs about {needed / 2**30:.2f} GiB more, {free / 2**30:.2f} GiB are free"
    if needed <= free:
        return f"memory: {sizes}"
    return (
        f"warning: not enough memory: {sizes}; set runtime.recompute: layers, or lower data.batch_size, "
        "data.image_size or data.crop_size, fidelity.max_denoising_queries, or model.d3q.max_queries"
    )
