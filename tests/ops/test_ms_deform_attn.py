"""Every backend of multi-scale deformable attention against its definition, in value and gradient."""

import pytest
import torch

from ops import ms_deform_attn
from ops.backends import forced_backend
from ops.reference import ms_deform_attn_reference
from tests.ops.operator_cases import SHAPES, every_backend, flat, make_inputs, with_gradients

through_both = pytest.mark.parametrize("operator", [False, True], ids=["function", "operator"])


def call(operator: bool, value: torch.Tensor, maps: list[tuple[int, int]], *rest: torch.Tensor) -> torch.Tensor:
    """The function that the models use, or the registered operator itself."""
    if operator:
        return torch.ops.d3q.ms_deform_attn(value, flat(maps), *rest)
    return ms_deform_attn(value, maps, *rest)


@every_backend
@through_both
@pytest.mark.parametrize("spread", [0.5, 0.8, 40.0])
@pytest.mark.parametrize("name", SHAPES)
def test_it_agrees_with_the_definition(name: str, spread: float, backend: str, operator: bool) -> None:
    maps = SHAPES[name][-1]
    inputs = make_inputs(name, dtype=torch.float64, spread=spread)
    expected = with_gradients(ms_deform_attn_reference, maps, inputs)
    with forced_backend(backend):
        found = with_gradients(lambda *arguments: call(operator, *arguments), maps, inputs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@every_backend
@through_both
@pytest.mark.parametrize("name", SHAPES)
def test_it_agrees_in_float32(name: str, backend: str, operator: bool) -> None:
    maps = SHAPES[name][-1]
    inputs = make_inputs(name, dtype=torch.float32, spread=0.6, seed=1)
    expected = with_gradients(ms_deform_attn_reference, maps, inputs)
    with forced_backend(backend):
        found = with_gradients(lambda *arguments: call(operator, *arguments), maps, inputs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@every_backend
@through_both
@pytest.mark.parametrize("half_weights", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_values_are_computed_in_float32(
    dtype: torch.dtype, half_weights: bool, backend: str, operator: bool
) -> None:
    maps = SHAPES["five maps"][-1]
    value, locations, weights = make_inputs("five maps", dtype=torch.float32, spread=0.6)
    inputs = (value.to(dtype), locations, weights.to(dtype) if half_weights else weights)
    with forced_backend(backend):
        found = with_gradients(lambda *arguments: call(operator, *arguments), maps, inputs)
    assert [tensor.dtype for tensor in found] == [dtype, *(tensor.dtype for tensor in inputs)]
    expected = with_gradients(
        lambda v, m, loc, w: ms_deform_attn_reference(v.float(), m, loc, w.float()).to(dtype), maps, inputs
    )
    rounding = 2 * torch.finfo(dtype).eps
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=rounding, atol=rounding)


@every_backend
def test_locations_on_the_border_and_far_outside(backend: str) -> None:
    """Corners of the map, centres of its outermost cells, one cell beyond, and so far out that int32 overflows."""
    maps = [(4, 6)]
    line = torch.tensor([-1e30, -1e6, -1.0, -0.25, 0.0, 1 / 12, 0.125, 0.5, 0.875, 11 / 12, 1.0, 1.25, 1e6, 1e30])
    locations = torch.cartesian_prod(line, line).view(1, -1, 1, 1, 1, 2)
    value = torch.randn(1, 24, 1, 3, generator=torch.Generator().manual_seed(2))
    weights = torch.ones(locations.shape[:-1])
    with forced_backend(backend):
        output = ms_deform_attn(value, maps, locations, weights)
    torch.testing.assert_close(output, ms_deform_attn_reference(value, maps, locations, weights), atol=1e-5, rtol=0)
    x, y = locations.view(-1, 2).unbind(-1)
    outside = (x < -1 / 12) | (x > 13 / 12) | (y < -1 / 8) | (y > 9 / 8)
    assert float(output[0, outside].abs().max()) == 0


@every_backend
@through_both
@pytest.mark.parametrize("location", [torch.inf, -torch.inf, torch.nan, 1e30, -1e30])
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1)], ids=["x", "y", "both"])
def test_an_undefined_or_far_location_contributes_nothing(
    location: float, axes: tuple[int, ...], backend: str, operator: bool
) -> None:
    """Not to the output and not to any gradient; the sample beside it counts as if it were alone."""
    value, locations, weights = make_inputs("odd", dtype=torch.float32, spread=0.4)
    maps = SHAPES["odd"][-1]
    spoilt = locations.clone()
    spoilt[..., 1, list(axes)] = location
    with forced_backend(backend):
        found = with_gradients(lambda *arguments: call(operator, *arguments), maps, (value, spoilt, weights))
        kept = (value, locations[..., ::2, :], weights[..., ::2])
        expected = with_gradients(lambda *arguments: call(operator, *arguments), maps, kept)
    assert not found[2][..., 1, :].any()
    assert not found[3][..., 1].any()
    found[2:] = [found[2][..., ::2, :], found[3][..., ::2]]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@every_backend
def test_a_cell_centre_gives_the_cell_itself(backend: str) -> None:
    value = torch.arange(6.0).view(1, 6, 1, 1)
    x, y = torch.meshgrid((torch.arange(3) + 0.5) / 3, (torch.arange(2) + 0.5) / 2, indexing="xy")
    locations = torch.stack([x, y], dim=-1).view(1, 6, 1, 1, 1, 2)
    with forced_backend(backend):
        output = ms_deform_attn(value, [(2, 3)], locations, torch.ones(1, 6, 1, 1, 1))
    torch.testing.assert_close(output.flatten(), torch.arange(6.0))


@every_backend
@through_both
@pytest.mark.parametrize("empty", ["batch", "queries", "points", "heads", "width"])
def test_nothing_to_attend_to_is_no_error(empty: str, backend: str, operator: bool) -> None:
    sizes = {"batch": 2, "queries": 3, "heads": 2, "width": 8, "points": 2} | {empty: 0}
    value = torch.randn(sizes["batch"], 7, sizes["heads"], sizes["width"])
    weights = torch.rand(sizes["batch"], sizes["queries"], sizes["heads"], 2, sizes["points"])
    inputs = (value, torch.rand(*weights.shape, 2), weights)
    with forced_backend(backend):
        found = with_gradients(lambda *arguments: call(operator, *arguments), [(2, 3), (1, 1)], inputs)
    assert found[0].shape == (sizes["batch"], sizes["queries"], sizes["heads"] * sizes["width"])
    assert [tensor.shape for tensor in found[1:]] == [tensor.shape for tensor in inputs]
    assert not any(tensor.any() for tensor in found)


@every_backend
@through_both
def test_any_memory_order_will_do(backend: str, operator: bool) -> None:
    maps = SHAPES["width 16"][-1]
    value, locations, weights = make_inputs("width 16", dtype=torch.float64, spread=0.6)
    with forced_backend(backend):
        expected = with_gradients(lambda *arguments: call(operator, *arguments), maps, (value, locations, weights))
        for order in ([0, 2, 1, 3], [3, 1, 2, 0], [2, 0, 3, 1]):
            back = [order.index(i) for i in range(4)]
            inputs = (
                value.permute(order).contiguous().permute(back),
                locations.flip(1).transpose(0, 1).contiguous().transpose(0, 1).flip(1),
                weights.transpose(1, 3).contiguous().transpose(1, 3),
            )
            found = with_gradients(lambda *arguments: call(operator, *arguments), maps, inputs)
            for ours, theirs in zip(found, expected, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@every_backend
@through_both
@pytest.mark.parametrize("name", ["odd", "five maps"])
def test_gradcheck(name: str, backend: str, operator: bool) -> None:
    maps = SHAPES[name][-1]
    inputs = [t.requires_grad_() for t in make_inputs(name, dtype=torch.float64, spread=0.6, seed=3)]
    with forced_backend(backend):
        assert torch.autograd.gradcheck(
            lambda v, loc, w: call(operator, v, maps, loc, w), inputs, atol=1e-6, fast_mode=True
        )


@every_backend
@through_both
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": (2, 57, 15)}, "4, 6 and 5 dimensions"),
        ({"value": (2, 56, 3, 5)}, "value has 56 tokens"),
        ({"locations": (2, 7, 3, 2, 3, 3)}, "sampling_locations"),
        ({"weights": (2, 7, 3, 2, 4)}, "attention_weights"),
        ({"weights": (2, 7, 3, 2, 3, 1)}, "4, 6 and 5 dimensions"),
        ({"value": (1, 57, 3, 5)}, "B, M, L"),
        ({"value": (2, 57, 5, 3)}, "B, M, L"),
        ({"maps": [(5, 9), (3, 4), (0, 2)]}, "must be positive"),
        ({"maps": [(5, 9), (-3, -4)]}, "must be positive"),
        ({"maps": [(57, 1)]}, "B, M, L"),
        ({"maps": [(2**62, 4), (57, 1)]}, "value has 57 tokens"),
        ({"maps": [(5, 9, 3)]}, "pairs"),
        ({"maps": []}, "pairs"),
        ({"dtypes": ("float64", "float32", "float32")}, "all be float32 or all float64"),
        ({"dtypes": ("float32", "float64", "float32")}, "all be float32 or all float64"),
        ({"dtypes": ("float32", "float32", "float16")}, "all be float32 or all float64"),
        ({"dtypes": ("int64", "int64", "int64")}, "all be float32 or all float64"),
        ({"dtypes": ("float16", "float16", "float16")}, "needs float32 sampling_locations"),
        ({"dtypes": ("bfloat16", "float32", "float16")}, "needs float32 sampling_locations"),
        ({"dtypes": ("float16", "float64", "float64")}, "needs float32 sampling_locations"),
    ],
)
def test_arguments_that_disagree_are_an_error(
    change: dict[str, object], message: str, backend: str, operator: bool
) -> None:
    inputs = make_inputs("odd", dtype=torch.float32, spread=0.5)
    tensors = dict(zip(("value", "locations", "weights"), inputs, strict=True))
    change = dict(change)
    maps = change.pop("maps", SHAPES["odd"][-1])
    dtypes = change.pop("dtypes", ("float32",) * 3)
    tensors |= {name: torch.zeros(shape) for name, shape in change.items()}
    changed = [tensor.to(getattr(torch, dtype)) for tensor, dtype in zip(tensors.values(), dtypes, strict=True)]
    with forced_backend(backend), pytest.raises(ValueError, match=message):
        call(operator, changed[0], maps, *changed[1:])
