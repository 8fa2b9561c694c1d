"""Every backend that can run here against the definition, in value and gradient."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ops.library import is_loaded
from ops.ms_deform_attn import FORMS, forced_backend, ms_deform_attn
from ops.reference import ms_deform_attn_reference

SHAPES = [(13, 9), (7, 5), (4, 3), (1, 1)]
# Largest allowed error, as a share of the largest number compared.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@dataclass(frozen=True)
class Result:
    backend: str
    dtype: torch.dtype
    value_error: float
    gradient_error: float

    @property
    def passed(self) -> bool:
        return max(self.value_error, self.gradient_error) <= TOLERANCES[self.dtype]


def self_test() -> list[Result]:
    """A line per backend and dtype, on the CPU; errors as shares of the largest number compared."""
    backends = [*(["cpp"] if is_loaded() else []), *FORMS]
    return [_compare(backend, dtype) for backend in backends for dtype in TOLERANCES]


def _compare(backend: str, dtype: torch.dtype) -> Result:
    generator = torch.Generator().manual_seed(0)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    batch, heads, dim, queries, points = 2, 3, 16, 11, 4
    tokens = sum(height * width for height, width in SHAPES)
    samples = (batch, queries, heads, len(SHAPES), points)
    value = torch.randn(batch, tokens, heads, dim, generator=generator, dtype=exact).to(dtype)
    locations = torch.rand(*samples, 2, generator=generator, dtype=exact) * 1.4 - 0.2
    weights = torch.rand(samples, generator=generator, dtype=exact)
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    with forced_backend(backend):
        output = ms_deform_attn(inputs[0], SHAPES, *inputs[1:])
        output_gradient = torch.randn(output.shape, generator=generator).to(dtype)
        found = [output, *torch.autograd.grad(output, inputs, output_gradient)]
    inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    output = ms_deform_attn_reference(inputs[0], SHAPES, *inputs[1:])
    expected = [output.detach(), *torch.autograd.grad(output, inputs, output_gradient.double())]
    errors = [_relative_error(ours, theirs) for ours, theirs in zip(found, expected, strict=True)]
    return Result(backend, dtype, errors[0], max(errors[1:]))


def _relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected).abs().max() / expected.abs().max())
