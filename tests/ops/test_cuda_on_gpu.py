"""The CUDA kernels on a GPU, through the operator, against the definition in float64."""

from typing import Any

import pytest
import torch
from emulated_kernels import Case, error

from ops import cuda_kernels, ms_deform_attn
from ops.ms_deform_attn import forced_backend

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(not cuda_kernels.are_loaded(), reason="the library has no CUDA kernels: python -m ops.build"),
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
PYRAMID = [(64, 80), (32, 40), (16, 20), (8, 10), (4, 5)]
# As shares of the largest number. Sums are longer than in the emulator's small cases; half gradients are rounded too.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 1.6e-2}


def make(**arguments: Any) -> Case:
    """Locations on a grid so coarse that float32 computes cells exactly: none falls into another cell by rounding."""
    case = Case(**arguments)
    case.locations = (case.locations * 4096).round() / 4096
    return case


def on_gpu(case: Case, backend: str = "cuda", device: str = "cuda") -> list[torch.Tensor]:
    """Output and gradients, on the CPU."""
    inputs = [tensor.to(device).requires_grad_() for tensor in (case.value, case.locations, case.weights)]
    with forced_backend(backend):
        output = ms_deform_attn(inputs[0], case.shapes, inputs[1], inputs[2])
        gradients = torch.autograd.grad(output, inputs, case.output_gradient.to(device))
    return [tensor.detach().cpu() for tensor in (output, *gradients)]


def assert_agrees(case: Case, backend: str = "cuda", device: str = "cuda") -> None:
    for found, expected in zip(on_gpu(case, backend, device), case.expected(), strict=True):
        assert error(found, expected) <= TOLERANCES[case.dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", cuda_kernels.WIDTHS)
def test_every_width_and_dtype(width: int, dtype: torch.dtype) -> None:
    for seed, queries in ((1, 1), (2, 300)):
        assert_agrees(make(shapes=PYRAMID, dim=width, dtype=dtype, queries=queries, seed=seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_blocks(dtype: torch.dtype) -> None:
    assert_agrees(make(shapes=PYRAMID, heads=8, dtype=dtype, queries=sum(h * w for h, w in PYRAMID)))


def test_strange_locations() -> None:
    case = make(queries=8)
    for query, number in enumerate([float("nan"), float("inf"), -float("inf"), 1e9, -1e9, 3e38, -3e38]):
        case.locations[:, query] = number
    assert_agrees(case)
    output, _, location_gradient, weight_gradient = on_gpu(case)
    for tensor in (output, location_gradient, weight_gradient):
        assert tensor[:, :7].abs().max() == 0


def test_memory_orders_and_offsets() -> None:
    case = make()
    case.value = case.value.transpose(1, 2).contiguous().transpose(1, 2)
    assert_agrees(case)
    case.value = case.value.mT.contiguous().mT
    assert_agrees(case)


def test_calls_without_a_kernel_run_in_torch() -> None:
    assert_agrees(make(dim=12), backend="auto")
    with pytest.raises(ValueError, match="heads are 12 wide"):
        on_gpu(make(dim=12))


def test_deterministic_gradients() -> None:
    case = make(shapes=[(2, 2)], queries=500)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = on_gpu(case), on_gpu(case)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_stream_of_its_own() -> None:
    """The kernel waits for what its stream still computes."""
    case = make(shapes=PYRAMID, queries=300)
    value, locations, weights = (tensor.cuda() for tensor in (case.value, case.locations, case.weights))
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        late = torch.zeros_like(value)
        torch.cuda._sleep(50_000_000)
        late.copy_(value)
        output = ms_deform_attn(late, case.shapes, locations, weights)
    torch.cuda.synchronize()
    assert error(output.cpu(), case.expected()[0]) <= TOLERANCES[torch.float32]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_a_device_that_is_not_the_current_one() -> None:
    assert_agrees(make(), device="cuda:1")


def test_a_compiled_call() -> None:
    case = make()
    inputs = [tensor.cuda() for tensor in (case.value, case.locations, case.weights)]
    compiled = torch.compile(lambda v, loc, w: ms_deform_attn(v, case.shapes, loc, w), fullgraph=True)
    assert error(compiled(*inputs).cpu(), case.expected()[0]) <= TOLERANCES[torch.float32]
