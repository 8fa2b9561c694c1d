"""The CUDA kernels on a CPU: `ops/csrc/cuda_kernels.cuh` compiled by a C++ compiler against `cuda_emulator/`."""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ops.reference import ms_deform_attn_reference

SOURCES = Path(__file__).parents[3] / "ops" / "csrc"
EMULATOR = Path(__file__).parent / "cuda_emulator"
COMPILE = (
    *("g++", "-std=c++20", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fPIC"),
    "-fno-gnu-unique",  # else all such libraries of a process have one shared memory
    "-ffp-contract=off",  # the same rounding on every kind of processor
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # in the order of d3q::cuda::Dtype
# So many elements before and after every tensor must not be touched: more than a block of the widest row can miss by.
GUARD = 1 << 16
NAN = float("nan")


class EmulationError(Exception):
    """What the emulator found: a deadlock, a lane that a shuffle does not name, ..."""


class Call(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ["dtype", "seed", "dim", "heads", "batch", "queries", "points", "levels"]),
        *((name, ctypes.c_int64) for name in ["last_blocks", "shift"]),
        *((name, ctypes.c_void_p) for name in ["shapes", "strides", "counts"]),
    )


class Reductions(NamedTuple):
    """What atomic additions amount to: instructions of a warp, and the sectors of 32 bytes that each touches."""

    instructions: int
    sectors: int


@dataclass
class Case:
    """One call of the operator; locations reach beyond the maps by a fifth of their size."""

    shapes: Sequence[tuple[int, int]] = ((9, 13), (5, 7), (3, 4), (2, 2), (1, 1))
    batch: int = 2
    heads: int = 2
    dim: int = 32
    queries: int = 11
    points: int = 4
    dtype: torch.dtype = torch.float32
    seed: int = 0
    value: Tensor = field(init=False)
    locations: Tensor = field(init=False)
    weights: Tensor = field(init=False)
    output_gradient: Tensor = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        tokens = sum(height * width for height, width in self.shapes)
        samples = (self.batch, self.queries, self.heads, len(self.shapes), self.points)
        self.value = torch.randn(self.batch, tokens, self.heads, self.dim, generator=generator).to(self.dtype)
        self.locations = torch.rand(*samples, 2, generator=generator) * 1.4 - 0.2
        self.weights = torch.rand(samples, generator=generator)
        width = self.heads * self.dim
        self.output_gradient = torch.randn(self.batch, self.queries, width, generator=generator).to(self.dtype)

    def expected(self) -> list[Tensor]:
        """Output and the gradients of value, locations and weights by the definition, in float64."""
        inputs = [tensor.double().requires_grad_() for tensor in (self.value, self.locations, self.weights)]
        output = ms_deform_attn_reference(inputs[0], self.shapes, inputs[1], inputs[2])
        return [output.detach(), *torch.autograd.grad(output, inputs, self.output_gradient.double())]


def compile_kernels(folder: Path, sources: Path = SOURCES, flags: Sequence[str] = ("-O1",)) -> Path:
    """The library in `folder`, of a folder of sources that may hold a fault on purpose."""
    library = folder / "emulated_kernels.so"
    command = [*COMPILE, *flags, "-shared", f"-I{sources}", f"-I{EMULATOR}", str(EMULATOR / "entry.cpp")]
    subprocess.run([*command, "-o", str(library)], check=True)
    return library


def with_parsed_emulator(folder: Path, flags: Sequence[str]) -> list[str]:
    """Flags for many calls of `compile_kernels`: those given, and the emulator's header as parsed with them."""
    header = folder / "parsed_emulator.h"
    header.write_text(f'#include "{EMULATOR / "cuda_emulator.h"}"\n')
    subprocess.run([*COMPILE, *flags, "-xc++-header", str(header), "-o", f"{header}.gch"], check=True)
    return [*flags, "-Winvalid-pch", "-include", str(header)]


class EmulatedKernels:
    """The kernels, compiled in `folder` unless they are there."""

    def __init__(self, folder: Path, sources: Path = SOURCES, flags: Sequence[str] = ("-O1",)) -> None:
        library = folder / "emulated_kernels.so"
        self._library = ctypes.CDLL(str(library if library.exists() else compile_kernels(folder, sources, flags)))

    def forward(self, case: Case, seed: int = 1, last_blocks: int = 0) -> Tensor:
        """The output, NaN where only the last blocks are run; seed is that of the threads' order."""
        value, locations, weights = _guarded(case.value), _guarded(case.locations), _guarded(case.weights)
        output = _guarded(torch.full((case.batch, case.queries, case.heads * case.dim), NAN, dtype=case.dtype))
        tensors = [value, locations, weights, output]
        self._checked("emulate_forward", case, seed, value, tensors, last_blocks=last_blocks)
        return output

    def backward(self, case: Case, seed: int = 1) -> list[Tensor]:
        """The gradients of value, locations and weights, all float32."""
        return self._backward(case, seed, None)

    def reductions(self, case: Case, seed: int = 1) -> Reductions:
        """Those of the backward pass."""
        counts = (ctypes.c_int64 * 2)()
        self._backward(case, seed, ctypes.addressof(counts))
        return Reductions(*counts)

    def _backward(self, case: Case, seed: int, counts: int | None) -> list[Tensor]:
        """The kernel sees a gradient of value that is all NaN. Only what it adds atomically arrives in the sums."""
        inputs = [_guarded(tensor) for tensor in (case.output_gradient, case.value, case.locations, case.weights)]
        seen = _guarded(torch.full_like(case.value, NAN, dtype=torch.float32))
        sums = _guarded(torch.zeros_like(case.value, dtype=torch.float32))
        gradients = [_guarded(torch.full_like(tensor, NAN)) for tensor in (case.locations, case.weights)]
        shift = sums.data_ptr() - seen.data_ptr()
        tensors = [*inputs, seen, *gradients]
        self._checked("emulate_backward", case, seed, inputs[1], tensors, shift=shift, counts=counts)
        if not (bool(seen.isnan().all()) and _is_guard_intact(sums)):
            raise EmulationError("the gradient of value is written other than by atomic additions, or outside")
        return [sums, *gradients]

    def everything(self, case: Case, seed: int = 1) -> list[Tensor]:
        return [self.forward(case, seed), *self.backward(case, seed)]

    def _checked(
        self, function: str, case: Case, seed: int, value: Tensor, tensors: list[Tensor], **more: int | None
    ) -> None:
        with _fenced(tensors):
            self.call(function, case, seed, value, tensors, **more)
        if not all(_is_guard_intact(tensor) for tensor in tensors):
            raise EmulationError("written outside a tensor")

    def call(
        self, function: str, case: Case, seed: int, value: Tensor, tensors: list[Tensor], **more: int | None
    ) -> None:
        """Calls the entry with its ForwardTensors or BackwardTensors; `value` gives the strides.

        more   last_blocks, shift and counts of Call
        """
        shapes = (ctypes.c_int64 * (2 * len(case.shapes)))(*(size for shape in case.shapes for size in shape))
        strides = (ctypes.c_int64 * 3)(*value.stride()[:3])
        call = Call(
            DTYPES.index(case.dtype),
            seed,
            *(case.dim, case.heads, case.batch, case.queries, case.points, len(case.shapes)),
            shapes=ctypes.addressof(shapes),
            strides=ctypes.addressof(strides),
            **more,
        )
        pointers = (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
        entry = getattr(self._library, function)
        entry.restype = ctypes.c_char_p
        if message := entry(ctypes.byref(call), ctypes.byref(pointers)):
            raise EmulationError(message.decode())


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference as a share of the largest expected number; infinite where something is not a number."""
    difference = (found.double() - expected).abs().max() / expected.abs().max()
    return float(torch.nan_to_num(difference, nan=torch.inf))


def without_compiler() -> str | None:
    """Why the emulator cannot be built here, if so."""
    if sys.platform != "linux":
        return f"the CUDA emulator is for Linux, not {sys.platform}"
    return None if shutil.which("g++") else "no g++ in PATH to compile the CUDA emulator"


def _guarded(tensor: Tensor) -> Tensor:
    """A copy with the same strides inside a larger one of NaN: what is read from there spoils every result."""
    storage = torch.full((tensor.numel() + 2 * GUARD,), NAN, dtype=tensor.dtype)
    copy = storage.as_strided(tensor.shape, tensor.stride(), GUARD)
    return copy.copy_(tensor)


@contextmanager
def _fenced(tensors: list[Tensor]) -> Iterator[None]:
    """Inside, AddressSanitizer, where this process has it, calls an access beside a tensor an error."""
    process = ctypes.CDLL(None)
    if not hasattr(process, "__asan_poison_memory_region"):
        yield
        return
    fences = []
    for tensor in tensors:
        storage, start = tensor.untyped_storage(), tensor.data_ptr()
        end = start + tensor.numel() * tensor.itemsize
        fences += [(storage.data_ptr(), GUARD * tensor.itemsize), (end, storage.data_ptr() + storage.nbytes() - end)]
    for start, size in fences:
        process.__asan_poison_memory_region(ctypes.c_void_p(start), ctypes.c_size_t(size))
    try:
        yield
    finally:
        for start, size in fences:
            process.__asan_unpoison_memory_region(ctypes.c_void_p(start), ctypes.c_size_t(size))


def _is_guard_intact(tensor: Tensor) -> bool:
    storage = torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage())
    return bool(storage[:GUARD].isnan().all() and storage[-GUARD:].isnan().all())
