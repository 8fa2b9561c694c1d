"""Inputs of the deformable attention operator, and how its backends are compared."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ops.library import is_loaded

Inputs = tuple[Tensor, Tensor, Tensor]
Maps = list[tuple[int, int]]

needs_cpp = pytest.mark.skipif(not is_loaded(), reason="the C++ kernels are not built: python -m ops.build")
every_backend = pytest.mark.parametrize(
    "backend", [pytest.param("cpp", marks=needs_cpp), "embedding_bag", "grid_sample", "gather"]
)

# batch, heads, width per head, queries, points, maps
SHAPES: dict[str, tuple[int, int, int, int, int, Maps]] = {
    "one map": (1, 1, 1, 1, 1, [(1, 1)]),
    "odd": (2, 3, 5, 7, 3, [(5, 9), (3, 4)]),
    "five maps": (2, 4, 8, 11, 4, [(13, 9), (7, 5), (4, 3), (2, 2), (1, 1)]),
    "thin maps": (3, 2, 4, 6, 2, [(1, 17), (12, 1)]),
    "width 11": (2, 2, 11, 9, 2, [(6, 5), (3, 2)]),
    "width 16": (2, 3, 16, 70, 2, [(6, 5), (3, 2)]),
    "width 24": (1, 2, 24, 5, 3, [(6, 5), (3, 2)]),
    "width 32": (2, 2, 32, 9, 4, [(6, 5), (3, 2)]),
    "width 64": (1, 2, 64, 9, 1, [(6, 5)]),
}


def make_inputs(name: str, *, dtype: torch.dtype, spread: float, seed: int = 0) -> Inputs:
    """Locations uniform in [0.5 - spread, 0.5 + spread]."""
    batch, heads, width, queries, points, maps = SHAPES[name]
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(height * wide for height, wide in maps)
    value = torch.randn(batch, tokens, heads, width, generator=generator, dtype=dtype)
    shape = (batch, queries, heads, len(maps), points)
    locations = 0.5 + spread * (2 * torch.rand(*shape, 2, generator=generator, dtype=dtype) - 1)
    weights = torch.rand(*shape, generator=generator, dtype=dtype).flatten(3).softmax(-1).view(shape)
    return value, locations, weights


def flat(maps: Maps) -> list[int]:
    return [size for shape in maps for size in shape]


def with_gradients(form: Callable[..., Tensor], maps: object, inputs: Inputs) -> list[Tensor]:
    """The output and the gradients of value, locations and weights."""
    value, locations, weights = (tensor.detach().requires_grad_() for tensor in inputs)
    output = form(value, maps, locations, weights)
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, (value, locations, weights), grad_output)]
