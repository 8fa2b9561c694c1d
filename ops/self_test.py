"""Compare every backend that runs here with the definition, in value and gradient."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ops import cuda_kernels, devices
from ops.backends import FORMS, forced_backend
from ops.library import is_loaded
from ops.ms_deform_attn import ms_deform_attn
from ops.reference import ms_deform_attn_reference

SHAPES = [(13, 9), (7, 5), (4, 3), (1, 1)]
# Largest allowed error, relative to the largest value compared.
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-10, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@dataclass(frozen=True)
class Result:
    """Errors relative to the largest value compared; NaN, with the reason, if the backend did not run."""

    backend: str
    dtype: torch.dtype
    value_error: float
    gradient_error: float
    device: str = "cpu"
    not_run: str = ""
    is_known: bool = False
    """If it did not run: the cause is the device or its memory, not the kernels"""

    @property
    def passed(self) -> bool:
        return not self.not_run and max(self.value_error, self.gradient_error) <= TOLERANCES[self.dtype]

    @property
    def wrong(self) -> bool:
        """Whether it ran and disagrees with the definition."""
        return not self.not_run and not self.passed

    def __str__(self) -> str:
        start = f"{self.backend:14} {str(self.dtype).removeprefix('torch.'):9}"
        if self.not_run:
            return f"{start} on {self.device} {'not run' if self.is_known else 'FAILED'}: {self.not_run}"
        verdict = "ok" if self.passed else "FAILED"
        return f"{start} {self.value_error:12.1e} {self.gradient_error:15.1e} {self.device:>8}  {verdict}"


HEADING = f"{'backend':14} {'dtype':9} {'value error':>12} {'gradient error':>15} {'device':>8}"


def self_test() -> list[Result]:
    """A result per backend and dtype: all on the CPU, and the CUDA kernels on every visible GPU."""
    cpu = torch.device("cpu")
    backends = [*(["cpp"] if is_loaded() else []), *FORMS]
    return [_compare(backend, dtype, cpu) for backend in backends for dtype in TOLERANCES] + cuda_self_test()


def cuda_self_test() -> list[Result]:
    """Results of the CUDA kernels, by device; none without kernels or GPUs."""
    count = torch.cuda.device_count() if cuda_kernels.are_loaded() else 0
    return [result for index in range(count) for result in _results_of_gpu(index)]


def _results_of_gpu(index: int) -> Iterator[Result]:
    """One result per dtype; a device on which the kernels do not run has a single result."""
    fault = devices.fault_on(index)
    if fault is not None:
        error, known = (math.inf, True) if fault.wrong_numbers else (math.nan, fault.is_known)
        words = "" if fault.wrong_numbers else str(fault)
        yield Result("cuda", torch.float32, error, error, f"cuda:{index}", words, known)
        return
    for dtype in TOLERANCES:
        if dtype == torch.float64:
            continue
        try:
            yield _compare("cuda", dtype, torch.device("cuda", index))
        except RuntimeError as error:
            known = re.search(devices.NO_VERDICT, str(error), re.IGNORECASE) is not None
            words = devices.first_line(str(error))
            yield Result("cuda", dtype, math.nan, math.nan, f"cuda:{index}", words, known)


def _compare(backend: str, dtype: torch.dtype, device: torch.device) -> Result:
    generator = torch.Generator().manual_seed(0)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    batch, heads, dim, queries, points = 2, 3, 16, 11, 4
    tokens = sum(height * width for height, width in SHAPES)
    samples = (batch, queries, heads, len(SHAPES), points)
    value = torch.randn(batch, tokens, heads, dim, generator=generator, dtype=exact).to(dtype)
    locations = torch.rand(*samples, 2, generator=generator, dtype=exact) * 1.4 - 0.2
    weights = torch.rand(samples, generator=generator, dtype=exact)
    inputs = [tensor.to(device).requires_grad_() for tensor in (value, locations, weights)]
    with forced_backend(backend):
        output = ms_deform_attn(inputs[0], SHAPES, *inputs[1:])
        output_gradient = torch.randn(output.shape, generator=generator).to(device, dtype)
        found = [output, *torch.autograd.grad(output, inputs, output_gradient)]
    inputs = [tensor.detach().double().requires_grad_() for tensor in inputs]
    output = ms_deform_attn_reference(inputs[0], SHAPES, *inputs[1:])
    expected = [output.detach(), *torch.autograd.grad(output, inputs, output_gradient.double())]
    errors = [_relative_error(ours, theirs) for ours, theirs in zip(found, expected, strict=True)]
    name = "cpu" if device.type == "cpu" else str(device)
    return Result(backend, dtype, errors[0], max(errors[1:]), name)


def _relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest error relative to the largest expected value; infinity for NaN, which no comparison would report."""
    error = float((found.detach().double() - expected).abs().max() / expected.abs().max())
    return math.inf if math.isnan(error) else error
