"""What can make a detector faster without changing what it computes; all of it is off unless a config asks for it."""

import torch
from torch import Tensor, nn

from configs.schema import RuntimeConfig

COMPILED_PARTS = ("backbone", "encoder")
"""Their shapes follow from the images alone; those behind them change with the number of objects, batch by batch."""


def accelerate(detector: nn.Module, runtime: RuntimeConfig, *, device_type: str) -> None:
    """In place, before the detector is wrapped for several processes; names and layout of the weights stay."""
    # GPUs alone: on CPUs it is not faster with ResNets, and oneDNN's backward pass of strided 1x1 convolutions of fewer
    # than 8 channels writes outside its memory (oneDNN issue 6035; seen with torch 2.14.1).
    if runtime.channels_last and device_type == "cuda":
        # The images alone: convolutions hand the order on, and the fused optimiser needs contiguous weights.
        detector.get_submodule("backbone").register_forward_pre_hook(_with_channels_last)
    if runtime.compile:
        for name in COMPILED_PARTS:
            detector.get_submodule(name).compile(fullgraph=True)


def _with_channels_last(backbone: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    (images,) = inputs
    return (images.contiguous(memory_format=torch.channels_last),)
