"""The CUDA kernels, run by an emulator on the CPU, against the definition in float64."""

import random
from collections.abc import Callable

import pytest
import torch

from tests.ops.cuda.emulated_kernels import Case, EmulatedKernels, EmulationError, error, without_compiler
from tests.ops.cuda.far_offsets import emulate_many_rows, emulate_wide_strides

pytestmark = pytest.mark.skipif(without_compiler() is not None, reason=str(without_compiler()))

WIDTHS = (8, 16, 32, 64, 128, 256)
# Largest allowed error of the output; gradients leave the kernels in float32.
TOLERANCES = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 4e-3}


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> EmulatedKernels:
    return EmulatedKernels(tmp_path_factory.mktemp("kernels"), flags=["-O1", "-Werror"])


@pytest.fixture(scope="module")
def newer_kernels(tmp_path_factory: pytest.TempPathFactory) -> EmulatedKernels:
    """As compiled for devices that add 16 bytes at once."""
    return EmulatedKernels(tmp_path_factory.mktemp("kernels"), flags=["-O1", "-Werror", "-D__CUDA_ARCH__=900"])


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


# Sectors of 32 bytes that the additions to one cell of 32 channels touch: no order of additions makes it less than 4.
SECTORS = {
    (torch.float32, 800): 4,
    (torch.float16, 800): 8,  # each of eight instructions fills half a sector
    (torch.bfloat16, 800): 8,
    (torch.float32, 900): 4,
    (torch.float16, 900): 4,
    (torch.bfloat16, 900): 4,
}


@pytest.mark.parametrize("architecture", [800, 900])
def test_sectors_that_the_gradients_of_value_touch(
    kernels: EmulatedKernels, newer_kernels: EmulatedKernels, architecture: int
) -> None:
    """One query, whose samples fall between four cells each."""
    for (dtype, device), sectors in SECTORS.items():
        if device != architecture:
            continue
        case = Case(shapes=[(9, 13), (4, 6)], batch=1, heads=1, queries=1, points=3, dtype=dtype)
        case.locations = case.locations.clamp(0.3, 0.7)
        used = kernels if architecture == 800 else newer_kernels
        lanes, floats = 32 * dtype.itemsize // 16, 1 if architecture == 800 else 4
        assert used.reductions(case) == (6 * 4 * 32 // lanes // floats, 6 * 4 * sectors)


@pytest.mark.parametrize("width", WIDTHS)
def test_vector_reductions_of_newer_devices(newer_kernels: EmulatedKernels, width: int) -> None:
    for dtype in TOLERANCES:
        assert_agrees(newer_kernels, Case(dim=width, dtype=dtype))


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


@pytest.mark.parametrize("emulate", [emulate_wide_strides, emulate_many_rows])
def test_offsets_beyond_32_bits(kernels: EmulatedKernels, emulate: Callable[[EmulatedKernels], float]) -> None:
    """More than 2^31 elements between images and between tokens, or more rows of queries; few pages are touched."""
    try:
        assert emulate(kernels) <= TOLERANCES[torch.float16]
    except OSError as reason:
        pytest.skip(f"no large sparse memory here: {reason}")


def test_a_grid_that_no_device_takes_is_an_error(kernels: EmulatedKernels) -> None:
    """Heads and images are counted in 16 bits; the binding sees to that before a launch."""
    most = Case(shapes=[(1, 1)], heads=65535, dim=8, queries=1, points=1, batch=1)
    assert kernels.forward(most, last_blocks=100)[..., -100 * 8 :].isfinite().all()
    for case in (
        Case(shapes=[(1, 1)], heads=65536, dim=8, queries=1, points=1, batch=1),
        Case(shapes=[(1, 1)], heads=1, dim=8, queries=1, points=1, batch=65536),
    ):
        for run in (kernels.forward, kernels.backward):
            with pytest.raises(EmulationError, match="invalid configuration argument"):
                run(case)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_reaches_those_that_sample_it(kernels: EmulatedKernels, number: float) -> None:
    """And nobody else: neither samples outside their map nor queries of padding. Locations cover both."""
    for dtype in TOLERANCES:
        case = with_strange_locations()
        case.value = case.value.to(dtype)
        case.output_gradient = case.output_gradient.to(dtype)
        case.dtype = dtype
        case.value[0, :2] = number
        case.value[1, 9 * 13 + 5, 1, 3] = number
        reached = False
        for found, expected in zip(kernels.everything(case), case.expected(), strict=True):
            assert torch.equal(found.isfinite(), expected.isfinite())
            reached |= not expected.isfinite().all()
            rest = expected.isfinite()
            assert error(found[rest], expected[rest]) <= TOLERANCES[dtype]
        assert reached
