"""The binding of the CUDA kernels and what calls it, on the CPU: the sources without files that need a GPU."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ops import cuda_build, library
from tests.ops.cuda.emulated_kernels import EMULATOR, SOURCES, without_compiler

ROOT = Path(__file__).parents[3]
INCLUDE = Path(torch.__file__).parent / "include"

# In cuda_bindings.cpp; a text that does not stand there so often is a failure.
ON_A_CPU = {
    "STABLE_TORCH_LIBRARY_IMPL(d3q, CUDA, library)": ("STABLE_TORCH_LIBRARY_IMPL(d3q, CPU, library)", 1),
    "tensor.is_cuda()": ("tensor.is_cpu()", 1),
    "current_stream(device))": ("nullptr)", 1),
    "void* current_stream(": ("[[maybe_unused]] void* current_stream(", 1),
    "const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());": ("", 2),
}

SCRIPT = """
import importlib
import sys

import torch

sys.path.append(sys.argv[2])  # behind the copy of `ops` in this folder
from tests.ops.cuda.emulated_kernels import Case, error
from ops import cuda_kernels, devices, reference
torch.ops.load_library(sys.argv[1])
assert cuda_kernels.are_loaded()


operator = importlib.import_module("ops.ms_deform_attn")  # `ops.ms_deform_attn` is the function
forced_backend = importlib.import_module("ops.backends").forced_backend


def flat(case):
    return [size for shape in case.shapes for size in shape]


def run(case):
    inputs = [case.value, flat(case), case.locations, case.weights]
    return [cuda_kernels.forward(*inputs), *cuda_kernels.backward(case.output_gradient, *inputs)]


def check(case):
    tolerance = 2e-6 if case.dtype == torch.float32 else 4e-3
    found, expected = run(case), case.expected()
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    assert found[0].dtype == case.dtype and {tensor.dtype for tensor in found[1:]} == {torch.float32}
    errors = [error(ours, theirs) for ours, theirs in zip(found, expected, strict=True)]
    assert max(errors) <= tolerance, errors


for dtype in (torch.float32, torch.float16, torch.bfloat16):
    check(Case(dtype=dtype))
    case = Case(dtype=dtype, dim=16, queries=5)
    case.weights = case.weights.to(dtype)
    check(case)
    case.value = case.value.transpose(1, 2).contiguous().transpose(1, 2)  # head by head
    check(case)
    case.value = case.value.mT.contiguous().mT  # channels apart
    check(case)
    case.value = case.value[:1].expand(2, -1, -1, -1)  # one image for all
    check(case)
    shifted = torch.empty(case.locations.numel() + 1)[1:].view_as(case.locations)
    case.locations = shifted.copy_(case.locations)  # not at a multiple of 16 bytes
    check(case)
    check(Case(dtype=dtype, batch=1, queries=1, heads=1))
for empty in ({"queries": 0}, {"batch": 0}, {"heads": 0}, {"points": 0}):
    found = run(Case(**empty))
    assert all(tensor.abs().sum() == 0 for tensor in found), empty


def refused(message, *, shapes=None, **changes):
    case = Case(dim=8)
    arguments = {"value": case.value, "shapes": flat(case), "locations": case.locations, "weights": case.weights}
    gradient = changes.pop("gradient", case.output_gradient)
    arguments |= changes | ({"shapes": shapes} if shapes else {})
    calls = [lambda: torch.ops.d3q.ms_deform_attn_cuda_backward(gradient, *arguments.values())]
    if gradient is case.output_gradient:
        calls.append(lambda: torch.ops.d3q.ms_deform_attn_cuda(*arguments.values()))
    for call in calls:
        try:
            call()
        except RuntimeError as found:
            assert message in str(found), (message, found)
        else:
            raise AssertionError(message)


case = Case(dim=8)
refused("sum(height * width)", shapes=[9, 13, 5, 7, 3, 4, 2, 2, 1, 2])
refused("positive", shapes=[9, 13, 5, 7, 3, 4, 2, 2, -1, -1])
refused("pairs", shapes=[9, 13, 5, 7, 3, 4, 2, 2, 1])
refused("attention_weights + (2,)", weights=case.weights[:, :-1].contiguous())
refused("batch, heads and levels", value=case.value[:1])
refused("8, 16, 32, 64, 128 or 256 wide", value=case.value[..., :4].contiguous())
refused("float32, float16 or bfloat16", value=case.value.double())
refused("locations and weights must be float32", locations=case.locations.half())
refused("must be contiguous", weights=case.weights.mT.contiguous().mT)
refused("channels of value must be adjacent", value=case.value.mT.contiguous().mT)
refused("multiples of 16 bytes", locations=torch.empty(case.locations.numel() + 1)[1:].view_as(case.locations))
refused("multiples of 16 bytes", value=torch.empty(*case.value.shape[:3], 10)[..., :8])
refused("(B, Q, M*D)", gradient=case.output_gradient[:, :-1].contiguous())
refused("have the dtype of value", gradient=case.output_gradient.half())
many = Case(shapes=[(1, 1)] * 17, dim=8)
refused("at most 16 levels", value=many.value, shapes=[1] * 34, locations=many.locations, weights=many.weights)

assert devices.numbers_are_right(torch.device("cpu"))
assert cuda_kernels.unsupported_call(case.value) is None
assert "70000 images" in cuda_kernels.unsupported_call(torch.empty(70000, 1, 1, 8))
assert operator.choose_backend("cuda") == "cuda" and operator.choose_backend("cpu") == "embedding_bag"
with forced_backend("cuda"):
    try:
        operator.choose_backend("cpu")
    except ValueError as found:
        assert "D3Q_OPS_BACKEND=cuda runs on GPUs" in str(found)
    else:
        raise AssertionError("the CUDA kernels ran on a CPU")

# From here on the operator takes CPU tensors for those of a GPU.
choose_backend, operator.choose_backend = operator.choose_backend, lambda *device: choose_backend("cuda")
cuda_kernels.unsupported_call = lambda value: None
calls = []
forward, backward = cuda_kernels.forward, cuda_kernels.backward
cuda_kernels.forward = lambda *arguments: calls.append("forward") or forward(*arguments)
cuda_kernels.backward = lambda *arguments: calls.append("backward") or backward(*arguments)


def check_operator(case, expected_calls, call=operator.ms_deform_attn):
    calls.clear()
    inputs = [tensor.clone().requires_grad_() for tensor in (case.value, case.locations, case.weights)]
    output = call(inputs[0], case.shapes, *inputs[1:])
    found = [output, *torch.autograd.grad(output, inputs, case.output_gradient)]
    assert calls == expected_calls, calls
    assert [tensor.dtype for tensor in found[1:]] == [tensor.dtype for tensor in inputs]
    errors = [error(ours.detach(), theirs) for ours, theirs in zip(found, case.expected(), strict=True)]
    assert max(errors) <= (2e-6 if case.dtype == torch.float32 else 8e-3), errors


for dtype in (torch.float32, torch.float16, torch.bfloat16):
    check_operator(Case(dtype=dtype), ["forward", "backward"])
compiled = torch.compile(operator.ms_deform_attn, fullgraph=True, backend="aot_eager")
check_operator(Case(), ["forward", "backward"], compiled)
check_operator(Case(dim=12), [])
check_operator(Case(dim=12), [], compiled)
check_operator(Case(shapes=[(1, 2)] * 17), [])
torch.use_deterministic_algorithms(True)
check_operator(Case(), ["forward"])
torch.use_deterministic_algorithms(False)
double = Case()
double.value, double.locations, double.weights = (
    tensor.double() for tensor in (double.value, double.locations, double.weights)
)
double.output_gradient = double.output_gradient.double()
check_operator(double, [])
cuda_kernels.unsupported_call = lambda value: "too old a device"
check_operator(Case(), [])
print("done")
"""


def emulated_source(folder: Path) -> Path:
    source = (SOURCES / "cuda_bindings.cpp").read_text()
    for old, (new, count) in ON_A_CPU.items():
        assert source.count(old) == count, f"{old!r} stands {source.count(old)} times in cuda_bindings.cpp, not {count}"
        source = source.replace(old, new)
    path = folder / "cuda_bindings.cpp"
    path.write_text(source)
    return path


@pytest.mark.skipif(without_compiler() is not None, reason=str(without_compiler()))
@pytest.mark.skipif(not (INCLUDE / "torch/csrc/stable/library.h").is_file(), reason="torch without its C++ headers")
def test_the_binding_with_emulated_kernels(tmp_path: Path) -> None:
    common = ["g++", *library.FLAGS, "-O1", "-DD3Q_CUDA_EMULATOR", f"-I{SOURCES}", f"-I{EMULATOR}", "-c"]
    units = {
        f"{dtype}.o": ["-xc++", str(SOURCES / "cuda_kernels.cu"), f"-DD3Q_DTYPE={dtype}"] for dtype in cuda_build.DTYPES
    }
    units["binding.o"] = [str(emulated_source(tmp_path)), f"-I{INCLUDE}"]
    for name, arguments in units.items():
        subprocess.run([*common, *arguments, "-o", str(tmp_path / name)], check=True)
    binding = tmp_path / "binding.so"
    libraries = [f"-L{INCLUDE.parent / 'lib'}", "-ltorch_cpu", "-lc10", "-ldl"]
    objects = [str(tmp_path / name) for name in units]
    subprocess.run(["g++", "-shared", *objects, *libraries, "-o", str(binding)], check=True)
    shutil.copytree(ROOT / "ops", tmp_path / "ops", ignore=shutil.ignore_patterns("_build", "__pycache__"))
    command = [sys.executable, "-c", SCRIPT, str(binding), str(ROOT)]
    environment = {"PATH": "", "XDG_CACHE_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.stdout.strip() == "done", run.stderr


# A runtime whose first choice of a device fails, and leaves its error for the next cudaGetLastError.
TWO_CALLS = """
#include "cuda_emulator.h"

#include <cstdio>
#include <utility>

cudaError_t error_left = cudaSuccess;
int devices_chosen = 0;
cudaError_t set_device(int) {
  if (devices_chosen++) return cudaSuccess;
  return error_left = cudaError_t(101);
}
cudaError_t get_last_error() { return std::exchange(error_left, cudaSuccess); }
#define cudaSetDevice set_device
#define cudaGetLastError get_last_error
#include "cuda_launch.cuh"

int main() {
  using namespace d3q::cuda;
  const int64_t shapes[] = {1, 1}, strides[] = {8, 8, 8};
  alignas(16) float value[8] = {7}, locations[4] = {.5f, .5f}, weights[4] = {1}, output[8] = {};
  const Problem problem = make_problem(Dtype::kFloat, 8, 1, 1, 1, 1, 1, shapes, strides);
  const ForwardTensors tensors{value, locations, weights, output};
  const bool first = start<Dtype::kFloat>(problem, tensors, 0, nullptr);
  const bool second = start<Dtype::kFloat>(problem, tensors, 0, nullptr);
  std::printf("%s, %s, %g", first ? "error" : "none", second ? "error" : "none", output[0]);
}
"""


@pytest.mark.skipif(without_compiler() is not None, reason=str(without_compiler()))
def test_a_device_that_cannot_be_chosen_leaves_no_error_behind(tmp_path: Path) -> None:
    (tmp_path / "two_calls.cpp").write_text(TWO_CALLS)
    command = ["g++", "-std=c++20", "-DD3Q_CUDA_EMULATOR", f"-I{SOURCES}", f"-I{EMULATOR}"]
    subprocess.run([*command, str(tmp_path / "two_calls.cpp"), "-o", str(tmp_path / "two_calls")], check=True)
    run = subprocess.run([str(tmp_path / "two_calls")], capture_output=True, text=True)
    assert run.stdout == "error, none, 7", run.stderr
