"""The registered operator: its contract with torch, compiled and exported programs, and the choice of backend."""

import shutil

import pytest
import torch
from torch import Tensor, nn

import ops.backends
from ops import cuda_kernels, ms_deform_attn
from ops.backends import choose_backend, forced_backend
from ops.library import is_loaded
from tests.ops.operator_cases import SHAPES, every_backend, flat, make_inputs, with_gradients

MAPS = SHAPES["five maps"][-1]


class Attend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(8, 8)

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(self.projection(value), MAPS, locations, weights).relu()


@every_backend
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_opcheck(backend: str, dtype: torch.dtype) -> None:
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    value, locations, weights = make_inputs("five maps", dtype=exact, spread=0.7)
    inputs = [value.to(dtype), locations, weights]
    gradient = torch.randn(2, 11, 32).to(dtype)
    with forced_backend(backend):
        torch.library.opcheck(
            torch.ops.d3q.ms_deform_attn_backward.default, (gradient, inputs[0], flat(MAPS), *inputs[1:])
        )
        inputs = [tensor.requires_grad_() for tensor in inputs]
        torch.library.opcheck(torch.ops.d3q.ms_deform_attn.default, (inputs[0], flat(MAPS), *inputs[1:]))


@every_backend
@pytest.mark.parametrize(("compiler", "dynamic"), [("aot_eager", None), ("aot_eager", True), ("inductor", None)])
def test_a_compiled_module_gives_the_same(compiler: str, dynamic: bool | None, backend: str) -> None:
    if compiler == "inductor" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("inductor needs a C++ compiler")
    torch.compiler.reset()
    module = Attend()
    inputs = make_inputs("five maps", dtype=torch.float32, spread=0.6)
    with forced_backend(backend):
        compiled = torch.compile(module, fullgraph=True, backend=compiler, dynamic=dynamic)
        found = with_gradients(lambda v, _, loc, w: compiled(v, loc, w), None, inputs)
        expected = with_gradients(lambda v, _, loc, w: module(v, loc, w), None, inputs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@every_backend
def test_an_exported_module_gives_the_same(backend: str) -> None:
    module = Attend()
    inputs = make_inputs("five maps", dtype=torch.float32, spread=0.6)
    queries = torch.export.Dim("queries", min=2, max=100)
    with forced_backend(backend), torch.no_grad():
        program = torch.export.export(module, inputs, dynamic_shapes=({}, {1: queries}, {1: queries}))
        targets = {str(node.target) for node in program.graph.nodes}
        assert ("d3q.ms_deform_attn.default" in targets) == (backend == "cpp")
        fewer = (inputs[0], inputs[1][:, :4], inputs[2][:, :4])
        for each in (inputs, fewer):
            torch.testing.assert_close(program.module()(*each), module(*each))


@every_backend
@pytest.mark.parametrize("compiled", [False, True])
def test_under_autocast_half_locations_are_computed_in_float32(backend: str, compiled: bool) -> None:
    value, locations, weights = make_inputs("five maps", dtype=torch.float32, spread=0.7)
    half = [tensor.to(torch.bfloat16) for tensor in (value, locations, weights)]

    def by_operator(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return torch.ops.d3q.ms_deform_attn(value, flat(MAPS), locations, weights)

    def by_function(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, MAPS, locations, weights)

    with forced_backend(backend):
        expected = ms_deform_attn(half[0], MAPS, half[1].float(), half[2].float())
        with pytest.raises(ValueError, match="float32"):
            by_operator(*half)
        for call in (by_operator, by_function):
            run = torch.compile(call, backend="aot_eager", fullgraph=True) if compiled else call
            with torch.autocast("cpu", torch.bfloat16):
                output = run(*half)
            assert output.dtype == torch.bfloat16
            torch.testing.assert_close(output, expected)


def test_a_bad_gradient_is_an_error() -> None:
    value, locations, weights = make_inputs("five maps", dtype=torch.float32, spread=0.6)
    for gradient, message in ((torch.zeros(2, 11, 31), "must be .B, Q"), (torch.zeros(2, 11, 32).double(), "like val")):
        with pytest.raises(ValueError, match=message):
            torch.ops.d3q.ms_deform_attn_backward(gradient, value, flat(MAPS), locations, weights)


def test_the_choice_of_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    with forced_backend("auto"):
        assert choose_backend("cpu") == ("cpp" if is_loaded() else "embedding_bag")
        assert choose_backend("cuda") == ("cuda" if cuda_kernels.are_loaded() else "grid_sample")
        assert choose_backend("mps") == "embedding_bag"
        monkeypatch.setattr(ops.backends, "is_loaded", lambda: False)
        assert choose_backend("cpu") == "embedding_bag"
    with forced_backend("grid_sample"):
        assert choose_backend("cpu") == "grid_sample"


def test_a_backend_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs("five maps", dtype=torch.float32, spread=0.6)
    with forced_backend("quick"), pytest.raises(ValueError, match=r"unknown backend 'quick'; choose auto, cpp"):
        ms_deform_attn(inputs[0], MAPS, *inputs[1:])
    monkeypatch.setattr(ops.backends, "is_loaded", lambda: False)
    with forced_backend("cpp"), pytest.raises(ValueError, match=r"run python -m ops\.build"):
        ms_deform_attn(inputs[0], MAPS, *inputs[1:])
    monkeypatch.setattr(ops.backends, "is_loaded", lambda: True)
    with forced_backend("cpp"), pytest.raises(ValueError, match="the tensors are on meta"):
        ms_deform_attn(inputs[0].to("meta"), MAPS, *(tensor.to("meta") for tensor in inputs[1:]))
