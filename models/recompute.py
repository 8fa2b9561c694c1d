"""Activation checkpointing: time for memory."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def call(module: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """module(*inputs); with `recompute` its backward pass computes everything inside again instead of keeping it.

    The same losses and gradients, bit for bit: dropout draws the same numbers again.

    Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False)
    return module(*inputs)
