"""The CUDA kernels on a GPU, through the operator, against the definition in float64."""

from typing import Any

import pytest
import torch

from ops import cuda_kernels, ms_deform_attn
from ops.backends import forced_backend
from tests.ops.cuda.emulated_kernels import Case, error

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


@pytest.mark.parametrize("backend", ["grid_sample", "embedding_bag"])
def test_deterministic_gradients_without_kernels(backend: str) -> None:
    case = make(shapes=[(2, 2)], queries=500)
    torch.use_deterministic_algorithms(True)  # what has no deterministic form raises
    try:
        first, second = on_gpu(case, backend), on_gpu(case, backend)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["cuda", "grid_sample", "embedding_bag", "gather"])
def test_a_cuda_graph_of_a_call(backend: str) -> None:
    """Nothing is copied from the host in a call but the first."""
    case = make(shapes=PYRAMID, queries=300)
    inputs = [tensor.cuda() for tensor in (case.value, case.locations, case.weights)]
    with forced_backend(backend):
        ms_deform_attn(inputs[0], case.shapes, *inputs[1:])
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = ms_deform_attn(inputs[0], case.shapes, *inputs[1:])
        output.zero_()
        graph.replay()
    assert error(output.cpu(), case.expected()[0]) <= TOLERANCES[torch.float32]


@pytest.mark.parametrize("backend", ["cuda", "grid_sample", "embedding_bag"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_reaches_those_that_sample_it(number: float, backend: str) -> None:
    case = make(queries=50)
    case.locations[:, :2] = 9.0  # outside
    case.value[0, :2], case.value[1, 13 * 9 - 1, 0] = number, number
    for found, expected in zip(on_gpu(case, backend), case.expected(), strict=True):
        assert torch.equal(found.isfinite(), expected.isfinite())


def test_second_derivatives() -> None:
    """An error through the kernels; the backend that the message names has them."""
    case = make(queries=3)
    inputs = [tensor.cuda().requires_grad_() for tensor in (case.value, case.locations, case.weights)]
    for backend in ("cuda", "gather"):
        with forced_backend(backend):
            output = ms_deform_attn(inputs[0], case.shapes, inputs[1], inputs[2])
            gradients = torch.autograd.grad(output.square().sum(), inputs, create_graph=True)
            loss = sum(each.square().sum() for each in gradients)
            if backend == "cuda":
                with pytest.raises(NotImplementedError, match="D3Q_OPS_BACKEND=gather"):
                    torch.autograd.grad(loss, inputs)
            else:
                assert all(each.abs().max() > 0 for each in torch.autograd.grad(loss, inputs))


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.mem_get_info()[1] < 40 << 30, reason="needs 40 GiB of GPU memory"
)
def test_embedding_bag_beyond_32_bits() -> None:
    """136 million rows of 32 channels, which torch gathers wrongly in one call."""
    torch.manual_seed(0)
    shapes = [(200, 200), (100, 100), (50, 50), (25, 25), (13, 13)]
    tokens = sum(height * width for height, width in shapes)
    value = torch.randn(4, tokens, 8, 32, device="cuda", requires_grad=True)
    locations = torch.rand(4, tokens, 8, 5, 4, 2, device="cuda")
    weights = torch.rand(4, tokens, 8, 5, 4, device="cuda")
    gradients = []
    for backend in ("cuda", "embedding_bag"):
        with forced_backend(backend):
            gradients += torch.autograd.grad(ms_deform_attn(value, shapes, locations, weights).square().sum(), value)
    assert error(gradients[1].cpu(), gradients[0].double().cpu()) <= 1e-3
