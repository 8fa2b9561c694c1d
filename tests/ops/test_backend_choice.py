"""A forced backend: chosen in the forward pass, by this thread alone, and kept by backward pass and recomputation."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Thread

import pytest
import torch
from torch import Tensor, nn

from models.attention import call
from ops import ms_deform_attn
from ops.backends import choose_backend, forced_backend, forced_choice

OPERATOR = import_module("ops.ms_deform_attn")
ROOT = Path(__file__).resolve().parents[2]
MAPS = [(3, 4), (2, 2)]


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    value, locations, weights = torch.randn(1, 16, 2, 4), torch.rand(1, 5, 2, 2, 2, 2), torch.rand(1, 5, 2, 2, 2)
    return value.requires_grad_(), locations.requires_grad_(), weights.requires_grad_()


def in_a_thread(work: Callable[[], object]) -> None:
    thread = Thread(target=work)
    thread.start()
    thread.join()


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backend of every choice from now on."""
    choices: list[str] = []

    def recorded(*arguments: object) -> str:
        choices.append(choose_backend(*arguments))  # type: ignore[arg-type]
        return choices[-1]

    monkeypatch.setattr(OPERATOR, "choose_backend", recorded)
    return choices


def test_another_thread_is_not_forced() -> None:
    found: list[str] = []
    with forced_backend("gather"):
        in_a_thread(lambda: found.append(choose_backend("cpu")))
        assert choose_backend("cpu") == "gather"
    assert found == [choose_backend("cpu")] != ["gather"]


def test_torch_can_trace_the_choice() -> None:
    """A ContextVar, which older versions of torch cannot trace, would do the same."""
    sources = [path for folder in ("ops", "models", "d3q") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 40
    assert not [path for path in sources if "contextvars" in path.read_text(encoding="utf-8")]


def test_a_compiled_program_follows_the_choice_of_its_thread() -> None:
    compiled = torch.compile(lambda x: x + len(forced_choice()), fullgraph=True, backend="eager")
    with forced_backend("grid_sample"):
        assert int(compiled(torch.zeros(()))) == len("grid_sample")
        found: list[int] = []
        in_a_thread(lambda: found.append(int(compiled(torch.zeros(())))))
    assert int(compiled(torch.zeros(()))) == len(forced_choice())
    assert found == [len(forced_choice())]


def operator(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    return torch.ops.d3q.ms_deform_attn(value, [3, 4, 2, 2], locations, weights)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("forced", ["gather", "grid_sample"])
def test_the_backward_pass_uses_the_backend_of_the_forward_pass(chosen: list[str], forced: str, compiled: bool) -> None:
    torch.compiler.reset()
    run = torch.compile(operator, fullgraph=True, backend="aot_eager") if compiled else operator
    with forced_backend(forced):
        output = run(*inputs())
    in_a_thread(output.sum().backward)
    assert chosen == [forced, forced]


def test_a_compiled_program_follows_the_choice(chosen: list[str]) -> None:
    """Also one that was compiled for another choice."""
    torch.compiler.reset()

    def attend(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, MAPS, locations, weights)

    expected = attend(*inputs())
    run = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for forced in ("gather", "grid_sample", "gather"):
        chosen.clear()
        with forced_backend(forced):
            torch.testing.assert_close(run(*inputs()), expected)
        assert set(chosen) == {forced}


class Attend(nn.Module):
    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return ms_deform_attn(value, MAPS, locations, weights)


def test_recomputation_uses_the_backend_of_the_forward_pass(chosen: list[str]) -> None:
    tensors = inputs()
    with forced_backend("gather"):
        output = call(Attend(), *tensors, recompute=True)
    in_a_thread(output.sum().backward)
    assert chosen == ["gather", "gather"]
    assert all(tensor.grad is not None for tensor in tensors)


class Operator(nn.Module):
    """The operator itself: what it chooses is not traced."""

    def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return operator(value, locations, weights)


def test_a_compiled_recomputation_uses_the_backend_of_the_forward_pass(chosen: list[str]) -> None:
    torch.compiler.reset()
    module, tensors = Operator(), inputs()
    run = torch.compile(partial(call, module, recompute=True), fullgraph=True, backend="aot_eager")
    with forced_backend("gather"):
        output = run(*tensors)
    output.sum().backward()  # outside of the context
    assert set(chosen) == {"gather"}
    assert all(tensor.grad is not None for tensor in tensors)
