"""The embedding_bag form of multi-scale deformable attention against its definition, in value and gradient."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ops import ms_deform_attn
from ops.ms_deform_attn import _ms_deform_attn_embedding_bag
from ops.reference import ms_deform_attn_reference

Inputs = tuple[Tensor, Tensor, Tensor]

# batch, heads, width per head, queries, points, maps
SHAPES = {
    "one map": (1, 1, 1, 1, 1, [(1, 1)]),
    "odd": (2, 3, 5, 7, 3, [(5, 9), (3, 4)]),
    "five maps": (2, 4, 8, 11, 4, [(13, 9), (7, 5), (4, 3), (2, 2), (1, 1)]),
    "thin maps": (3, 2, 4, 6, 2, [(1, 17), (12, 1)]),
}


def make_inputs(name: str, *, dtype: torch.dtype, spread: float, seed: int = 0) -> Inputs:
    """Locations uniform in [0.5 - spread, 0.5 + spread]."""
    batch, heads, width, queries, points, maps = SHAPES[name]
    generator = torch.Generator().manual_seed(seed)
    tokens = sum(height * wide for height, wide in maps)
    value = torch.randn(batch, tokens, heads, width, generator=generator, dtype=dtype)
    shape = (batch, queries, heads, len(maps), points)
    locations = 0.5 + spread * (2 * torch.rand(*shape, 2, generator=generator, dtype=dtype) - 1)
    weights = torch.rand(*shape, generator=generator, dtype=dtype).flatten(3).softmax(-1).view(shape)
    return value, locations, weights


def with_gradients(form: Callable[..., Tensor], maps: list[tuple[int, int]], inputs: Inputs) -> list[Tensor]:
    value, locations, weights = (tensor.clone().requires_grad_() for tensor in inputs)
    output = form(value, maps, locations, weights)
    grad_output = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, (value, locations, weights), grad_output)]


@pytest.mark.parametrize("spread", [0.5, 0.8, 40.0])
@pytest.mark.parametrize("name", SHAPES)
def test_it_agrees_with_the_definition(name: str, spread: float) -> None:
    maps = SHAPES[name][-1]
    inputs = make_inputs(name, dtype=torch.float64, spread=spread)
    expected = with_gradients(ms_deform_attn_reference, maps, inputs)
    found = with_gradients(_ms_deform_attn_embedding_bag, maps, inputs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SHAPES)
def test_it_agrees_in_float32(name: str) -> None:
    maps = SHAPES[name][-1]
    inputs = make_inputs(name, dtype=torch.float32, spread=0.6, seed=1)
    expected = with_gradients(ms_deform_attn_reference, maps, inputs)
    found = with_gradients(_ms_deform_attn_embedding_bag, maps, inputs)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_locations_on_the_border_and_far_outside() -> None:
    """Corners of the map, centres of its outermost cells, one cell beyond, and so far out that int32 overflows."""
    maps = [(4, 6)]
    line = torch.tensor([-1e30, -1e6, -1.0, -0.25, 0.0, 1 / 12, 0.125, 0.5, 0.875, 11 / 12, 1.0, 1.25, 1e6, 1e30])
    locations = torch.cartesian_prod(line, line).view(1, -1, 1, 1, 1, 2)
    value = torch.randn(1, 24, 1, 3, generator=torch.Generator().manual_seed(2))
    weights = torch.ones(locations.shape[:-1])
    output = _ms_deform_attn_embedding_bag(value, maps, locations, weights)
    torch.testing.assert_close(output, ms_deform_attn_reference(value, maps, locations, weights), atol=1e-5, rtol=0)
    x, y = locations.view(-1, 2).unbind(-1)
    outside = (x < -1 / 12) | (x > 13 / 12) | (y < -1 / 8) | (y > 9 / 8)
    assert float(output[0, outside].abs().max()) == 0


@pytest.mark.parametrize("location", [torch.inf, -torch.inf])
def test_an_infinite_location_contributes_nothing(location: float) -> None:
    value, weights = torch.ones(1, 6, 1, 2), torch.ones(1, 1, 1, 1, 1)
    output = _ms_deform_attn_embedding_bag(value, [(2, 3)], torch.full((1, 1, 1, 1, 1, 2), location), weights)
    assert output.tolist() == [[[0.0, 0.0]]]


def test_a_cell_centre_gives_the_cell_itself() -> None:
    value = torch.arange(6.0).view(1, 6, 1, 1)
    x, y = torch.meshgrid((torch.arange(3) + 0.5) / 3, (torch.arange(2) + 0.5) / 2, indexing="xy")
    locations = torch.stack([x, y], dim=-1).view(1, 6, 1, 1, 1, 2)
    output = ms_deform_attn(value, [(2, 3)], locations, torch.ones(1, 6, 1, 1, 1))
    torch.testing.assert_close(output.flatten(), torch.arange(6.0))


@pytest.mark.parametrize("form", [_ms_deform_attn_embedding_bag, ms_deform_attn_reference])
def test_gradcheck(form: Callable[..., Tensor]) -> None:
    maps = SHAPES["odd"][-1]
    inputs = [t.requires_grad_() for t in make_inputs("odd", dtype=torch.float64, spread=0.6, seed=3)]
    assert torch.autograd.gradcheck(lambda v, loc, w: form(v, maps, loc, w), inputs, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": (2, 57, 15)}, "4, 6 and 5 dimensions"),
        ({"value": (2, 56, 3, 5)}, "value has 56 tokens"),
        ({"locations": (2, 7, 3, 2, 3, 3)}, "sampling_locations"),
        ({"weights": (2, 7, 3, 2, 4)}, "attention_weights"),
        ({"value": (1, 57, 3, 5)}, "B, M, L"),
        ({"value": (2, 57, 5, 3)}, "B, M, L"),
        ({"maps": [(5, 9), (3, 4), (0, 2)]}, "must be positive"),
        ({"maps": [(57, 1)]}, "B, M, L"),
    ],
)
def test_shapes_that_disagree_are_an_error(change: dict[str, object], message: str) -> None:
    value, locations, weights = make_inputs("odd", dtype=torch.float32, spread=0.5)
    tensors = {"value": value, "locations": locations, "weights": weights}
    maps = change.pop("maps", SHAPES["odd"][-1])
    tensors |= {name: torch.zeros(shape) for name, shape in change.items()}
    with pytest.raises(ValueError, match=message):
        ms_deform_attn(tensors["value"], maps, tensors["locations"], tensors["weights"])
