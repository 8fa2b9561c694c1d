"""Faults planted into the CUDA kernels: the emulator must notice each."""

import faulthandler
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ops.cuda.emulated_kernels import (
    SOURCES,
    Case,
    EmulatedKernels,
    EmulationError,
    compile_kernels,
    error,
    with_parsed_emulator,
    without_compiler,
)
from tests.ops.cuda.far_offsets import emulate_many_rows, emulate_wide_strides, expect
from tests.ops.cuda.test_cuda_kernels import with_strange_locations
from tests.ops.test_sanitizers import runtimes

pytestmark = pytest.mark.skipif(without_compiler() is not None, reason=str(without_compiler()))

SANITIZE = ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# A fault: its text in the source, what stands there instead, and how often. Not among them: the barriers before the
# next round, where a vote or shuffle has all lanes wait too, but orders no memory, which the emulator does not tell
# apart; and additions of zero to a cell that stands in for one outside, which only cost time.
Fault = tuple[str, str, int]
FAULTS: dict[str, Fault] = {
    "missing barrier": ("    __syncwarp();\n", "", 2),
    "half a shuffle tree": ("step = kLanes / 2;", "step = kLanes / 4;", 1),
    "a shuffle that names half of the lanes": (
        "__shfl_xor_sync(kWholeWarp, x, step)",
        "__shfl_xor_sync(0xffffu, x, step)",
        1,
    ),
    "early return before barriers": (
        "const bool live = query < p.queries;",
        "const bool live = query < p.queries; if (!live) return;",
        2,
    ),
    "wrong stride": ("uint32_t(width) * p.token_stride", "uint32_t(height) * p.token_stride", 1),
    "lost validity bit": ("unsigned(lower && right) << 3", "0u", 1),
    "validity ignored": ("return cells.valid >> cell & 1 ? share : 0.f;", "return share;", 1),
    "scalar product with a cell outside": ("dot[cell] = sample.valid >> cell & 1 ? dot[cell] : 0.f;", "", 1),
    "unmasked tail, forward": ("  if (!live) return;\n", "", 1),
    "unmasked tail, backward": ("if (live && sample < p.samples) {\n        location_g", "{\n        location_g", 1),
    "not a number taken for inside": (
        "if (!(x > -1.f && y > -1.f && x < float(width) && y < float(height)))",
        "if (x <= -1.f || y <= -1.f || x >= float(width) || y >= float(height))",
        1,
    ),
    "plain addition": ("atomicAdd(to, gradient[0] * weight);", "*to += gradient[0] * weight;", 1),
    "plain store": ("atomicAdd(to, gradient[0] * weight);", "*to = gradient[0] * weight;", 1),
    "staged, but not counted from the front": (
        "const int place = count + __popc(touching & ((1u << lane) - 1));",
        "const int place = tap * L::kLanes + lane;",
        1,
    ),
    "shared memory read that nobody has written": ("place < count; ++place", "place < L::kRound; ++place", 1),
    "staged only where it is inside": (
        "      taps[slot][place] = {found.x, found.y, weight, found.valid};\n"
        "      offsets[slot][place] = found.offset;\n",
        "      if (found.valid) {\n      taps[slot][place] = {found.x, found.y, weight, found.valid};\n"
        "      offsets[slot][place] = found.offset;\n      }\n",
        1,
    ),
    "heads and images swapped": ("head = blockIdx.y, image = blockIdx.z", "head = blockIdx.z, image = blockIdx.y", 2),
    "every lane loads the first channels, forward": (
        "+ head * p.head_stride + lane * L::kChannels;",
        "+ head * p.head_stride;",
        1,
    ),
    "every lane loads the first channels, backward": ("value + origin + lane * L::kChannels;", "value + origin;", 1),
    "every lane adds to the first channels": (
        "value_gradient + origin + lane * kAdded;",
        "value_gradient + origin;",
        1,
    ),
    "additions one lane apart": ("i * L::kLanes * kAdded, added", "i * (L::kLanes - 1) * kAdded, added", 1),
}
# These change nothing but offsets beyond 32 bits.
FAR_FAULTS: dict[str, Fault] = {
    "image offset of 32 bits, forward": ("value + image * p.image_stride", "value + int(image * p.image_stride)", 1),
    "image offset of 32 bits, backward": ("origin = image * p.image_stride", "origin = int(image * p.image_stride)", 1),
    "row of 32 bits": ("int64_t row = (int64_t(image) * p.queries", "int64_t row = (image * p.queries", 2),
    "cell offset of 32 bits": ("sums + int64_t(offset) * L::kChannels", "sums + int(offset * L::kChannels)", 1),
}
# These read, or reserve, beside memory without any effect on the numbers: only AddressSanitizer sees it.
UNSEEN_FAULTS: dict[str, Fault] = {
    "a cell to the right of the map read": ("left && right ? p.token_stride : 0", "p.token_stride", 1),
    "a cell below the map read": (
        "upper && lower ? uint32_t(width) * p.token_stride : 0",
        "uint32_t(width) * p.token_stride",
        1,
    ),
    "shared memory too small": ("kSlots = kWideBlock / kLanes;", "kSlots = kWideBlock / kLanes / 8;", 1),
}


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return with_parsed_emulator(tmp_path_factory.mktemp("plain"), ["-O0"])


@pytest.fixture(scope="module")
def sanitize(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return with_parsed_emulator(tmp_path_factory.mktemp("sanitized"), SANITIZE)


def with_fault(folder: Path, fault: Fault | None) -> Path:
    """A copy of the sources with a fault; a text that the source no longer has is an error."""
    shutil.copytree(SOURCES, folder / "sources")
    if fault is not None:
        old, new, count = fault
        path = folder / "sources" / "cuda_kernels.cuh"
        source = path.read_text()
        assert source.count(old) == count, f"{old!r} stands {source.count(old)} times in {path.name}, not {count}"
        path.write_text(source.replace(old, new))
    return folder / "sources"


def ends_well(check: Callable[[], bool]) -> bool:
    """Whether it says so, in a process of its own: a fault may well end it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            faulthandler.disable()  # no traceback of a crash that is meant
            status = 0 if check() else 1
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def is_noticed(kernels: EmulatedKernels, case: Case) -> bool:
    expected = case.expected()  # not in the other process: autograd has threads

    def agrees() -> bool:
        try:
            found = kernels.everything(case)
        except EmulationError:
            return False
        return all(error(ours, theirs) <= 1e-3 for ours, theirs in zip(found, expected, strict=True))

    return not ends_well(agrees)


def cases() -> list[Case]:
    return [Case(), with_strange_locations(), Case(batch=1, heads=3, shapes=[(5, 7), (3, 4), (2, 2)], points=3)]


@pytest.mark.parametrize("name", FAULTS)
def test_planted_faults_are_noticed(tmp_path: Path, flags: list[str], name: str) -> None:
    mutant = EmulatedKernels(tmp_path, with_fault(tmp_path, FAULTS[name]), [*flags, "-DD3Q_FLOAT_ONLY"])
    assert any(is_noticed(mutant, case) for case in cases())


def test_kernels_without_a_fault_are_not_blamed(tmp_path: Path, flags: list[str]) -> None:
    kernels = EmulatedKernels(tmp_path, with_fault(tmp_path, None), flags)
    assert not any(is_noticed(kernels, case) for case in cases())
    expect()
    assert all(ends_well(lambda run=run: run(kernels) < 4e-3) for run in (emulate_wide_strides, emulate_many_rows))


@pytest.mark.parametrize("name", FAR_FAULTS)
def test_planted_faults_of_far_offsets_are_noticed(tmp_path: Path, flags: list[str], name: str) -> None:
    mutant = EmulatedKernels(tmp_path, with_fault(tmp_path, FAR_FAULTS[name]), flags)
    expect()
    assert not all(ends_well(lambda run=run: run(mutant) < 4e-3) for run in (emulate_wide_strides, emulate_many_rows))


SANITIZED_RUN = """
import sys
sys.path[:0] = sys.argv[2:]
from pathlib import Path
from tests.ops.cuda.emulated_kernels import Case, EmulatedKernels
kernels = EmulatedKernels(Path(sys.argv[1]))
for case in (Case(dim=8), Case(queries=2), Case(shapes=[(2, 3)], batch=2, heads=40, queries=400, points=1, dim=8)):
    kernels.everything(case)
print("clean")
"""


def run_sanitized(folder: Path, fault: Fault | None, flags: list[str]) -> "subprocess.CompletedProcess[str]":
    """With AddressSanitizer and UndefinedBehaviorSanitizer; what surrounds the tensors is out of bounds."""
    compile_kernels(folder, with_fault(folder, fault), [*flags, "-DD3Q_FLOAT_ONLY"])
    here = Path(__file__).parent
    return subprocess.run(
        [sys.executable, "-c", SANITIZED_RUN, str(folder), str(here.parents[2])],
        env=os.environ | {"LD_PRELOAD": ":".join(runtimes()), "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


@pytest.mark.skipif(not runtimes(), reason="no g++ with AddressSanitizer and UndefinedBehaviorSanitizer")
@pytest.mark.parametrize("name", [None, *UNSEEN_FAULTS])
def test_no_access_outside(tmp_path: Path, sanitize: list[str], name: str | None) -> None:
    run = run_sanitized(tmp_path, UNSEEN_FAULTS[name] if name else None, sanitize)
    if name is None:
        assert (run.returncode, run.stdout) == (0, "clean\n"), run.stderr[-3000:]
    else:
        assert run.returncode != 0
        assert "AddressSanitizer" in run.stderr or "runtime error" in run.stderr
