"""Calls whose offsets do not fit 32 bits, emulated in sparse memory of which few pages are ever touched.

Each returns the largest error, and raises OSError where a process may not reserve so much. Call `expect` before a fork:
autograd refuses to run in the child once it has run in the parent.
"""

import copy
import functools
import mmap

import torch
from torch import Tensor

from tests.ops.cuda.emulated_kernels import Case, EmulatedKernels, error

MAP_NORESERVE = 0x4000  # Linux; a name in mmap since Python 3.13


def sparse(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    elements = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    return torch.frombuffer(mmap.mmap(-1, elements * dtype.itemsize, flags=flags), dtype=dtype).as_strided(
        shape, strides
    )


def sparse_like(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return sparse(shape, torch.empty(shape, device="meta").stride(), dtype)


@functools.cache
def wide_case() -> tuple[Case, list[Tensor]]:
    case = Case(shapes=[(1, 3)], heads=1, dim=8, queries=3, dtype=torch.float16)
    return case, list(case.expected())


@functools.cache
def long_case() -> tuple[Case, list[Tensor]]:
    case = Case(shapes=[(2, 3)], heads=2, dim=8, queries=5, points=1, dtype=torch.float16)
    return case, list(case.expected())


def expect() -> None:
    """Compute the expected results of both calls."""
    wide_case()
    long_case()


def emulate_wide_strides(kernels: EmulatedKernels) -> float:
    """More than 2^31 elements between images, and 2^30 between tokens."""
    case, expected = wide_case()
    strides = (3 * 2**30 + 64, 2**30 + 8, 8, 1)
    value, gradient = (sparse(tuple(case.value.shape), strides, dtype) for dtype in (case.dtype, torch.float32))
    value.copy_(case.value)
    outputs = [torch.empty(2, 3, 8, dtype=case.dtype), torch.empty_like(case.locations), torch.empty_like(case.weights)]
    kernels.call("emulate_forward", case, 1, value, [value, case.locations, case.weights, outputs[0]])
    inputs = [case.output_gradient, value, case.locations, case.weights]
    kernels.call("emulate_backward", case, 1, value, [*inputs, gradient, *outputs[1:]])
    found = [outputs[0], gradient, *outputs[1:]]
    return max(error(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def emulate_many_rows(kernels: EmulatedKernels) -> float:
    """More than 2^31 queries times heads and images. Only the last block of the last head and image is run."""
    case, expected = long_case()
    case, last, queries = copy.copy(case), case.queries, 2**29 + 5
    case.queries = queries
    rows = (2, queries, 2)
    locations, location_gradient = sparse_like(*rows, 1, 1, 2), sparse_like(*rows, 1, 1, 2)
    weights, weight_gradient = sparse_like(*rows, 1, 1), sparse_like(*rows, 1, 1)
    output, output_gradient = (sparse_like(2, queries, 16, dtype=torch.float16) for _ in range(2))
    for sparsely, small in (
        (locations, case.locations),
        (weights, case.weights),
        (output_gradient, case.output_gradient),
    ):
        sparsely[:, -last:] = small
    value_gradient = torch.zeros_like(case.value, dtype=torch.float32)
    for function, tensors in (
        ("emulate_forward", [case.value, locations, weights, output]),
        ("emulate_backward", [output_gradient, case.value, locations, weights, value_gradient, location_gradient,
                              weight_gradient]),
    ):  # fmt: skip
        kernels.call(function, case, 1, case.value, tensors, last_blocks=1)
    found = (output, location_gradient, weight_gradient)
    # The last block is that of image 1 and head 1.
    parts = [
        (output.view(2, queries, 2, 8)[1, -last:, 1], expected[0].view(2, last, 2, 8)[1, :, 1]),
        *((ours[1, -last:, 1], theirs[1, :, 1]) for ours, theirs in zip(found[1:], expected[2:], strict=True)),
        (value_gradient[1, :, 1], expected[1][1, :, 1]),
    ]
    return max(error(ours, theirs) for ours, theirs in parts)
