"""The operator beyond one gradient: second derivatives, values that are not finite, calls that copy nothing."""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from ops import embedding_bag, ms_deform_attn
from ops.backends import forced_backend
from ops.reference import ms_deform_attn_reference
from tests.ops.operator_cases import SHAPES, every_backend, flat, make_inputs, needs_cpp, with_gradients

MAPS = SHAPES["five maps"][-1]


def by_operator(value: Tensor, maps: list[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    return torch.ops.d3q.ms_deform_attn(value, flat(maps), locations, weights)


@pytest.mark.parametrize(
    ("backend", "call"),
    [
        pytest.param("cpp", ms_deform_attn, marks=needs_cpp),
        ("embedding_bag", by_operator),
        ("grid_sample", by_operator),
        ("gather", by_operator),
    ],
)
def test_second_derivatives_inside_the_operator_are_an_error(backend: str, call: object) -> None:
    """Not zeros with a warning; and the message names what has them."""
    assert callable(call)
    inputs = [tensor.requires_grad_() for tensor in make_inputs("five maps", dtype=torch.float32, spread=0.6)]
    with forced_backend(backend):
        output = call(inputs[0], MAPS, *inputs[1:])
        for loss in (output.square().sum(), output.sum()):
            gradients = torch.autograd.grad(loss, inputs, create_graph=True)
            message = "call ops.ms_deform_attn" if backend == "gather" else "D3Q_OPS_BACKEND=gather"
            with pytest.raises(NotImplementedError, match=message):
                torch.autograd.grad(sum(each.square().sum() for each in gradients), inputs)


def test_the_backend_that_has_second_derivatives() -> None:
    inputs = make_inputs("odd", dtype=torch.float64, spread=0.4)
    with forced_backend("gather"):
        assert torch.autograd.gradgradcheck(
            lambda *each: ms_deform_attn(each[0], SHAPES["odd"][-1], *each[1:]),
            [tensor.requires_grad_() for tensor in inputs],
        )


@every_backend
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("call", [ms_deform_attn, by_operator])
def test_a_value_that_is_not_finite_reaches_those_that_sample_it(backend: str, number: float, call: object) -> None:
    """First and last cells of maps too: where a form that needs some cell for samples outside might look."""
    assert callable(call)
    value, locations, weights = make_inputs("five maps", dtype=torch.float32, spread=0.7)
    locations[:, 0] = float("nan")
    locations[:, 1, :, :, 0] = 7.0
    locations[0, 2] = 0.07  # near the first cells
    for token in (0, 1, 13 * 9 - 1, 13 * 9, -1):
        value[0, token, 0] = number
    value[1, 40:60, 2, 3] = number
    expected = with_gradients(ms_deform_attn_reference, MAPS, (value, locations, weights))
    with forced_backend(backend):
        found = with_gradients(call, MAPS, (value, locations, weights))
    assert not all(each.isfinite().all() for each in expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.isfinite(), theirs.isfinite())
        finite = theirs.isfinite()
        torch.testing.assert_close(ours[finite], theirs[finite], rtol=1e-4, atol=1e-4)
    assert found[0][:, 0].abs().max() == 0


class HostCopies(TorchFunctionMode):
    """Counts what is made of numbers of the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.tensor, torch.as_tensor, torch.from_numpy)
        return func(*args, **(kwargs or {}))


@every_backend
@pytest.mark.parametrize("call", [ms_deform_attn, by_operator])
def test_a_second_call_copies_nothing_to_the_device(backend: str, call: object) -> None:
    """Else a CUDA graph cannot hold it; forward and backward, and shapes that come again."""
    inputs = make_inputs("five maps", dtype=torch.float32, spread=0.6)
    others = make_inputs("odd", dtype=torch.float32, spread=0.6)
    embedding_bag._kept_sizes.cache_clear()
    with forced_backend(backend), HostCopies() as copies:
        first = with_gradients(call, MAPS, inputs)
        with_gradients(call, SHAPES["odd"][-1], others)
        so_far = copies.count
        second = with_gradients(call, MAPS, inputs)
    assert copies.count == so_far <= 2
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("backend", ["embedding_bag", "gather"])
def test_a_table_of_another_mode_is_not_taken(backend: str) -> None:
    """Neither that of a call without gradients, which autograd must not keep, nor that of tensors without memory."""
    inputs = make_inputs("five maps", dtype=torch.float32, spread=0.6)
    embedding_bag._kept_sizes.cache_clear()
    with forced_backend(backend):
        with torch.inference_mode():
            expected = ms_deform_attn(inputs[0], MAPS, *inputs[1:])
        with_gradients(ms_deform_attn, MAPS, inputs)
        embedding_bag._kept_sizes.cache_clear()
        with FakeTensorMode() as fake:
            ms_deform_attn(*(each if isinstance(each, list) else fake.from_tensor(each)
                             for each in (inputs[0], MAPS, *inputs[1:])))  # fmt: skip
        found = with_gradients(ms_deform_attn, MAPS, inputs)
        with FakeTensorMode() as fake:
            ms_deform_attn(*(each if isinstance(each, list) else fake.from_tensor(each)
                             for each in (inputs[0], MAPS, *inputs[1:])))  # fmt: skip
    assert torch.equal(found[0], expected)


def test_sums_in_parts_are_the_same() -> None:
    """As on GPUs, where one call of embedding_bag counts in 32 bits."""
    rows, weights = torch.randn(20, 4, requires_grad=True), torch.rand(7, 6, requires_grad=True)
    places = torch.randint(20, (7, 6))
    results = []
    for most in (None, 100):
        sums = embedding_bag._weighted_sums(rows, places, weights, most)
        results.append([sums, *torch.autograd.grad(sums.square().sum(), (rows, weights))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("deterministic", [False, True])
def test_gradients_on_a_gpu_without_kernels_are_the_operators_where_they_shall_be_deterministic(
    deterministic: bool,
) -> None:
    """torch has no deterministic gradients of grid_sample there, and the operator has."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(deterministic)
    try:
        with FakeTensorMode(), forced_backend("grid_sample"):
            value = torch.empty(2, 63, 3, 8, device="cuda", requires_grad=True)
            locations = torch.empty(2, 5, 3, 1, 2, 2, device="cuda")
            output = ms_deform_attn(value, [(7, 9)], locations, torch.empty(2, 5, 3, 1, 2, device="cuda"))
    finally:
        torch.use_deterministic_algorithms(before)
    assert ("ms_deform_attn" in type(output.grad_fn).__name__) == deterministic


def test_a_traced_call_does_not_ask_for_autocast_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile of torch 2.11 cannot trace that question."""

    def asked(device_type: str) -> bool:
        raise AssertionError("asked in a call")

    monkeypatch.setattr(torch.amp, "is_autocast_available", asked)
    inputs = make_inputs("five maps", dtype=torch.float32, spread=0.6)
    assert ms_deform_attn(inputs[0], MAPS, *inputs[1:]).isfinite().all()
    assert set(importlib.import_module("ops.ms_deform_attn").AUTOCAST_DEVICES) >= {"cpu", "cuda"}
