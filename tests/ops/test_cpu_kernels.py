"""The C++ kernels themselves: both variants, any number of threads, and what keeps them inside their tensors."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ops.backends import forced_backend
from ops.ms_deform_attn import ms_deform_attn
from ops.reference import ms_deform_attn_reference
from tests.ops.operator_cases import SHAPES, flat, make_inputs, needs_cpp, with_gradients

pytestmark = needs_cpp


def run_kernels(inputs: tuple[Tensor, Tensor, Tensor], shapes: list[int], *, allow_avx2: bool) -> list[Tensor]:
    """As operator_cases.with_gradients, past every check in Python."""
    value, *rest = inputs
    output = torch.ops.d3q.ms_deform_attn_cpu(value, shapes, *rest, allow_avx2=allow_avx2)
    gradient = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    run = torch.ops.d3q.ms_deform_attn_cpu_backward
    return [output, *run(gradient, value, shapes, *rest, allow_avx2=allow_avx2)]


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("allow_avx2", [False, True], ids=["baseline", "avx2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SHAPES)
def test_both_variants_agree_with_the_definition(name: str, dtype: torch.dtype, allow_avx2: bool) -> None:
    maps = SHAPES[name][-1]
    inputs = make_inputs(name, dtype=dtype, spread=0.7, seed=5)
    expected = with_gradients(ms_deform_attn_reference, maps, inputs)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    for ours, theirs in zip(run_kernels(inputs, flat(maps), allow_avx2=allow_avx2), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("name", ["odd", "five maps", "thin maps", "width 16", "width 11", "width 64"])
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    maps = SHAPES[name][-1]
    inputs = make_inputs(name, dtype=torch.float32, spread=0.6)
    results = []
    for threads in (1, 2, 3, 2, 40):  # the last are more than twice the heads of all images: two passes
        torch.set_num_threads(threads)
        with forced_backend("cpp"):
            results.append(with_gradients(ms_deform_attn, maps, inputs))
    for other in results[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(other, results[0], strict=True))


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc/self/task to count threads in")
def test_the_backward_pass_of_one_head_uses_more_threads() -> None:
    """Threads are started by the first call that shares its work."""
    code = (
        "import os, torch, ops; torch.set_num_threads(4)\n"
        "value, locations = torch.ones(1, 6, 1, 8), torch.ones(1, 300, 1, 1, 1, 2)\n"
        "weights = torch.ones(1, 300, 1, 1, 1)\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "torch.ops.d3q.ms_deform_attn_cpu_backward(torch.ones(1, 300, 8), value, [2, 3], locations, weights)\n"
        "print(len(os.listdir('/proc/self/task')) - before)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) == 3


def test_cells_outside_are_not_read() -> None:
    """A cell that no sample touches may hold anything."""
    value = torch.full((1, 6, 1, 8), torch.nan)
    value[:, 0] = 2.0
    locations = torch.tensor([[-0.05, -0.1], [0.01, 0.05], [-9.0, 0.5]]).view(1, 3, 1, 1, 1, 2)
    for allow_avx2 in (False, True):
        found = run_kernels((value, locations, torch.ones(1, 3, 1, 1, 1)), [2, 3], allow_avx2=allow_avx2)
        assert all(tensor.isfinite().all() for tensor in found)
        assert not found[0][:, 2].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": torch.zeros(2, 57, 15)}, "value needs 4 dimensions"),
        ({"locations": torch.zeros(2, 7, 3, 2, 3)}, "sampling_locations needs 6"),
        ({"weights": torch.zeros(2, 7, 3, 2)}, "attention_weights 5"),
        ({"weights": torch.zeros(2, 7, 3, 2, 4)}, r"must be attention_weights \+ \(2,\)"),
        ({"locations": torch.zeros(2, 7, 3, 2, 3, 1)}, r"must be attention_weights \+ \(2,\)"),
        ({"value": torch.zeros(1, 57, 3, 5)}, "batch, heads and levels"),
        ({"value": torch.zeros(2, 57, 2, 5)}, "batch, heads and levels"),
        ({"value": torch.zeros(2, 56, 3, 5)}, "tokens"),
        ({"value": torch.zeros(2, 57, 5, 3).transpose(2, 3)}, "channels of value must be adjacent"),
        ({"value": torch.zeros(2, 57, 3, 5).half()}, "dtype of value"),
        ({"locations": torch.zeros(2, 7, 3, 2, 3, 2).double()}, "dtype of value"),
        ({"weights": torch.zeros(2, 7, 3, 3, 2).transpose(3, 4)}, "must be contiguous"),
        ({"shapes": []}, "pairs"),
        ({"shapes": [5, 9, 12]}, "pairs"),
        ({"shapes": [57, 1]}, "batch, heads and levels"),
        ({"shapes": [5, 9, 3, 5]}, "tokens"),
        ({"shapes": [5, 9, -3, -4]}, "positive"),
        ({"shapes": [5, 9, 0, 4]}, "positive"),
        ({"shapes": [2**62, 4, 57, 1]}, "tokens"),
        ({"shapes": [2**32, 2**32, 57, 1]}, "tokens"),
    ],
)
def test_calls_that_would_leave_the_tensors_are_errors(change: dict[str, object], message: str) -> None:
    value, locations, weights = make_inputs("odd", dtype=torch.float32, spread=0.5)
    arguments = {"value": value, "shapes": [5, 9, 3, 4], "locations": locations, "weights": weights} | change
    with pytest.raises(RuntimeError, match=f"ms_deform_attn: .*{message}"):
        torch.ops.d3q.ms_deform_attn_cpu(*arguments.values())
    with pytest.raises(RuntimeError, match=f"ms_deform_attn: .*{message}"):
        torch.ops.d3q.ms_deform_attn_cpu_backward(torch.zeros(2, 7, 15), *arguments.values())


@pytest.mark.parametrize(
    "gradient", [torch.zeros(2, 7, 14), torch.zeros(2, 7, 15).double(), torch.zeros(2, 15, 7).transpose(1, 2)]
)
def test_a_gradient_that_does_not_fit_is_an_error(gradient: Tensor) -> None:
    inputs = make_inputs("odd", dtype=torch.float32, spread=0.5)
    with pytest.raises(RuntimeError, match="ms_deform_attn: "):
        torch.ops.d3q.ms_deform_attn_cpu_backward(gradient, inputs[0], [5, 9, 3, 4], *inputs[1:])
