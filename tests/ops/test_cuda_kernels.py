"""The CUDA kernels, run by an emulator on the CPU, against the definition in float64, and faults that must show."""

import mmap
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from emulated_kernels import SOURCES, Case, EmulatedKernels, EmulationError, error, without_compiler
from torch import Tensor

pytestmark = pytest.mark.skipif(without_compiler() is not None, reason=str(without_compiler()))

WIDTHS = (8, 16, 32, 64, 128, 256)
# Largest allowed error of the output; gradients leave the kernels in float32.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 4e-3}
MAP_NORESERVE = 0x4000  # Linux; a name in mmap since Python 3.13


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> EmulatedKernels:
    return EmulatedKernels(tmp_path_factory.mktemp("kernels"), flags=["-O1", "-Werror"])


def assert_agrees(kernels: EmulatedKernels, case: Case, seed: int = 1) -> None:
    output, *gradients = kernels.everything(case, seed)
    expected_output, *expected_gradients = case.expected()
    assert error(output, expected_output) <= TOLERANCES[case.dtype]
    for found, expected in zip(gradients, expected_gradients, strict=True):
        assert error(found, expected) <= TOLERANCES[torch.float32]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("width", WIDTHS)
def test_every_width_and_dtype(kernels: EmulatedKernels, width: int, dtype: torch.dtype) -> None:
    for seed, queries in ((1, 11), (2, 1), (3, 8)):
        assert_agrees(kernels, Case(dim=width, dtype=dtype, queries=queries, seed=seed), seed)


def test_random_problems(kernels: EmulatedKernels) -> None:
    pick = random.Random(0)
    for seed in range(40):
        case = Case(
            shapes=[(pick.randint(1, 12), pick.randint(1, 12)) for _ in range(pick.randint(1, 6))],
            batch=pick.randint(1, 3),
            heads=pick.randint(1, 3),
            dim=pick.choice(WIDTHS[:4]),
            queries=pick.randint(1, 37),
            points=pick.randint(1, 9),
            dtype=pick.choice(list(TOLERANCES)),
            seed=seed,
        )
        assert_agrees(kernels, case, seed)


def test_maps_of_one_cell_and_the_largest_number_of_levels(kernels: EmulatedKernels) -> None:
    assert_agrees(kernels, Case(shapes=[(1, 1)]))
    assert_agrees(kernels, Case(shapes=[(1, 1)] * 16, points=1))
    assert_agrees(kernels, Case(shapes=[(1, 9), (7, 1)], points=3))


def test_wide_blocks(kernels: EmulatedKernels) -> None:
    """From 1024 blocks on, they have 256 threads."""
    assert_agrees(kernels, Case(shapes=[(2, 3)], batch=16, heads=64, queries=9, points=1))


def test_vector_reductions_of_newer_devices(tmp_path: Path) -> None:
    newer = EmulatedKernels(tmp_path, flags=["-O1", "-Werror", "-D__CUDA_ARCH__=900"])
    for dtype in TOLERANCES:
        assert_agrees(newer, Case(dtype=dtype))


def test_values_that_lie_head_by_head(kernels: EmulatedKernels) -> None:
    for dtype in TOLERANCES:
        case = Case(dtype=dtype)
        case.value = case.value.transpose(1, 2).contiguous().transpose(1, 2)
        assert_agrees(kernels, case)


def test_no_samples_give_zero(kernels: EmulatedKernels) -> None:
    case = Case(points=0)
    output, value_gradient, *_ = kernels.everything(case)
    assert output.abs().max() == 0
    assert value_gradient.abs().max() == 0


def with_strange_locations() -> Case:
    """NaN, infinite and far locations, and some on borders where nothing or only half of the cells are in the map."""
    case = Case(queries=12)
    strange = [float("nan"), float("inf"), -float("inf"), 1e9, -1e9, 3e38, -3e38, -0.5, 1.5]
    for query, number in enumerate(strange):
        case.locations[:, query, :, :, :2, query % 2] = number
    case.locations[:, 9:] = torch.tensor([0.0, 1.0, 0.5])[:, None, None, None, None]
    return case


def test_strange_locations_give_zero_and_zero_gradients(kernels: EmulatedKernels) -> None:
    case = with_strange_locations()
    assert_agrees(kernels, case)
    _, _, location_gradient, weight_gradient = kernels.everything(case)
    assert location_gradient[:, :7, :, :, :2].abs().max() == 0
    assert weight_gradient[:, :7, :, :, :2].abs().max() == 0


def test_offsets_beyond_32_bits(kernels: EmulatedKernels) -> None:
    """More than 2^31 elements between images and between tokens; most of that memory is never touched."""

    def sparse(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        elements = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
        memory = mmap.mmap(-1, elements * dtype.itemsize, flags=flags)
        return torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides)

    case = Case(shapes=[(1, 3)], heads=1, dim=8, queries=3, dtype=torch.float16)
    strides = (3 * 2**30 + 64, 2**30 + 8, 8, 1)
    try:
        value = sparse(tuple(case.value.shape), strides, case.dtype)
        gradient = sparse(tuple(case.value.shape), strides, torch.float32)
    except OSError as reason:
        pytest.skip(f"no large sparse memory here: {reason}")
    value.copy_(case.value)
    outputs = [torch.empty(2, 3, 8, dtype=case.dtype), torch.empty_like(case.locations), torch.empty_like(case.weights)]
    kernels.call("emulate_forward", case, 1, value, [value, case.locations, case.weights, outputs[0]])
    inputs = [case.output_gradient, value, case.locations, case.weights]
    kernels.call("emulate_backward", case, 1, value, [*inputs, gradient, *outputs[1:]])
    for found, expected in zip([outputs[0], gradient, *outputs[1:]], case.expected(), strict=True):
        assert error(found, expected) <= TOLERANCES[case.dtype]


# A fault, and how often its text stands in the source.
MUTANTS: dict[str, tuple[str, str, int]] = {
    "missing barrier": ("    __syncwarp();\n", "", 2),
    "missing barrier before the next round": ("    __syncwarp();  // the next round", "    // the next round", 2),
    "half a shuffle tree": ("step = kLanes / 2;", "step = kLanes / 4;", 1),
    "early return before barriers": (
        "const bool live = query < p.queries;",
        "const bool live = query < p.queries; if (!live) return;",
        2,
    ),
    "wrong stride": ("uint32_t(width) * p.token_stride", "uint32_t(height) * p.token_stride", 1),
    "lost validity bit": ("unsigned(lower && right) << 3", "0u", 1),
    "validity ignored": ("return cells.valid >> cell & 1 ? share : 0.f;", "return share;", 1),
    "unmasked tail, forward": ("  if (!live) return;\n", "", 1),
    "unmasked tail, backward": ("if (live && sample < p.samples) {\n        location_g", "{\n        location_g", 1),
    "not a number taken for inside": (
        "if (!(x > -1.f && y > -1.f && x < float(width) && y < float(height)))",
        "if (x <= -1.f || y <= -1.f || x >= float(width) || y >= float(height))",
        1,
    ),
}


def with_fault(folder: Path, name: str) -> EmulatedKernels:
    """The kernels with a fault; a text that the source no longer has is an error."""
    old, new, count = MUTANTS[name]
    shutil.copytree(SOURCES, folder / "sources")
    path = folder / "sources" / "cuda_kernels.cuh"
    source = path.read_text()
    assert source.count(old) == count, f"{old!r} stands {source.count(old)} times in {path.name}, not {count}"
    path.write_text(source.replace(old, new))
    return EmulatedKernels(folder, sources=folder / "sources", flags=["-O0", "-DD3Q_FLOAT_ONLY"])


@pytest.mark.parametrize("name", MUTANTS)
def test_planted_faults_are_noticed(tmp_path: Path, name: str) -> None:
    mutant = with_fault(tmp_path, name)

    def is_wrong(make_case: Callable[[], Case]) -> bool:
        case = make_case()
        try:
            found = mutant.everything(case)
        except EmulationError:
            return True
        return any(error(ours, theirs) > 1e-3 for ours, theirs in zip(found, case.expected(), strict=True))

    assert any(is_wrong(make_case) for make_case in (Case, with_strange_locations))
