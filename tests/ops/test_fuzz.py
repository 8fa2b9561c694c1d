"""Random mutations of valid calls: each is rejected with a message that names the relation, or equals the definition.

D3Q_FUZZ_CALLS sets how many; the fixed seed makes a failure repeatable.
"""

import os
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ops.backends import forced_backend
from ops.reference import ms_deform_attn_reference
from tests.ops.operator_cases import every_backend, flat, needs_cpp

CALLS = int(os.environ.get("D3Q_FUZZ_CALLS", "1500"))
NAMES = ("value", "sampling_locations", "attention_weights")
RELATION = re.compile("dimensions|pairs|positive|tokens|attention_weights|float32|dtype|contiguous|adjacent")
Call = dict[str, Any]


def valid_call(rng: random.Random) -> Call:
    """Samples stay away from the centres of cells, where rounding decides which of two derivatives holds."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    batch, queries, heads, points = (rng.randint(1, 3) for _ in range(4))
    maps = [(rng.randint(1, 5), rng.randint(1, 5)) for _ in range(rng.randint(1, 3))]
    dtype = rng.choice((torch.float32, torch.float64))
    tokens, width = sum(h * w for h, w in maps), rng.choice((1, 3, 8, 16, 24))
    samples = (batch, queries, heads, len(maps), points)
    sizes = torch.tensor(maps).flip(1)[:, None]
    cell = (torch.rand(*samples, 2, generator=generator) * (sizes + 3)).floor() - 2
    place = cell + 0.1 + 0.8 * torch.rand(cell.shape, generator=generator)
    return {
        "value": torch.randn(batch, tokens, heads, width, generator=generator).to(dtype),
        "spatial_shapes": flat(maps),
        "sampling_locations": ((place.double() + 0.5) / sizes).to(dtype),
        "attention_weights": torch.rand(samples, generator=generator).to(dtype),
    }


def change_size(rng: random.Random, call: Call) -> None:
    name = rng.choice(NAMES)
    shape = list(call[name].shape)
    axis = rng.randrange(len(shape))
    shape[axis] = max(0, rng.choice((0, shape[axis] - 1, shape[axis] + 1)))
    call[name] = torch.zeros(shape, dtype=call[name].dtype)


def change_dimensions(rng: random.Random, call: Call) -> None:
    name = rng.choice(NAMES)
    call[name] = call[name][None] if rng.random() < 0.5 else call[name].flatten(0, 1)


def swap_axes(rng: random.Random, call: Call) -> None:
    name = rng.choice(NAMES)
    call[name] = call[name].transpose(*rng.sample(range(call[name].dim()), 2))


def change_memory_order(rng: random.Random, call: Call) -> None:
    name = rng.choice(NAMES)
    axes = rng.sample(range(call[name].dim()), 2)
    call[name] = call[name].transpose(*axes).contiguous().transpose(*axes)


def share_memory(rng: random.Random, call: Call) -> None:
    name = rng.choice(NAMES)
    if call[name].shape[0]:
        call[name] = call[name][:1].expand_as(call[name])


def change_map(rng: random.Random, call: Call) -> None:
    shapes = call["spatial_shapes"]
    if shapes:
        i = rng.randrange(len(shapes))
        shapes[i] = rng.choice((0, -shapes[i], shapes[i] + 1, shapes[i] - 1, 2**31, 2**62))


def change_maps(rng: random.Random, call: Call) -> None:
    shapes = call["spatial_shapes"]
    rng.choice(
        (shapes.reverse, lambda: shapes and shapes.pop(), lambda: shapes.append(1), lambda: shapes.extend((1, 1)))
    )()


def change_dtype(rng: random.Random, call: Call) -> None:
    name = rng.choice(NAMES)
    call[name] = call[name].to(rng.choice((torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int32)))


def spoil_locations(rng: random.Random, call: Call) -> None:
    locations = call["sampling_locations"] = call["sampling_locations"].clone(memory_format=torch.contiguous_format)
    if locations.numel() and locations.is_floating_point():
        odd = rng.choice((torch.nan, torch.inf, -torch.inf, 1e30, -1e6, -1e-30))
        locations.view(-1)[rng.randrange(locations.numel())] = odd


MUTATIONS = (
    change_size, change_dimensions, swap_axes, change_memory_order, share_memory,
    change_map, change_maps, change_dtype, spoil_locations,
)  # fmt: skip


def run(form: Callable[..., Tensor], call: Call) -> list[Tensor]:
    value, shapes, locations, weights = call.values()
    inputs = [tensor.detach().requires_grad_(tensor.is_floating_point()) for tensor in (value, locations, weights)]
    output = form(inputs[0], shapes, *inputs[1:])
    gradient = torch.linspace(-1, 1, output.numel()).to(output.dtype).view_as(output)
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]


def definition(value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
    if 0 in (value.numel(), locations.numel()):  # grid_sample takes no empty maps
        zero = sum(tensor.flatten()[:0].sum() for tensor in (value, locations, weights))
        return zero + value.new_zeros(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    maps = list(zip(shapes[::2], shapes[1::2], strict=True))
    output = ms_deform_attn_reference(value.double(), maps, locations.double(), weights.double())
    return output.to(value.dtype)


def check_calls(form: Callable[..., Tensor], seed: int) -> tuple[int, int]:
    """How many calls were computed, and how many were rejected."""
    rng = random.Random(seed)
    computed = rejected = 0
    for i in range(CALLS):
        call = valid_call(rng)
        mutations = rng.choices(MUTATIONS, k=rng.randint(0, 2))
        for mutate in mutations:
            mutate(rng, call)
        label = f"call {i}: {[mutate.__name__ for mutate in mutations]}"
        found, reason = [], ""
        try:
            found = run(form, call)
        except (ValueError, RuntimeError) as error:
            reason = str(error)
        if reason:
            assert mutations, f"{label}: {reason}"
            assert RELATION.search(reason), f"{label}: {reason}"
            rejected += 1
            continue
        computed += 1
        for ours, theirs in zip(found, run(definition, call), strict=True):
            tolerance = {torch.float64: 1e-9, torch.float32: 2e-4}.get(ours.dtype, 4 * torch.finfo(ours.dtype).eps)
            assert ours.dtype == theirs.dtype, label
            assert torch.allclose(ours, theirs, rtol=tolerance, atol=tolerance), f"{label}: {ours - theirs}"
    return computed, rejected


@every_backend
def test_the_operator(backend: str) -> None:
    with forced_backend(backend):
        computed, rejected = check_calls(torch.ops.d3q.ms_deform_attn, seed=1)
    assert min(computed, rejected) > CALLS / 5, (computed, rejected)


class Kernels(torch.autograd.Function):
    """The C++ kernels past every check in Python."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, shapes: list[int], locations: Tensor, weights: Tensor) -> Tensor:
        ctx.shapes = shapes
        ctx.save_for_backward(value, locations, weights)
        return torch.ops.d3q.ms_deform_attn_cpu(value, shapes, locations, weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        value, locations, weights = ctx.saved_tensors
        run = torch.ops.d3q.ms_deform_attn_cpu_backward
        gradients = run(gradient.contiguous(), value, ctx.shapes, locations, weights)
        return gradients[0], None, gradients[1], gradients[2]


@needs_cpp
@pytest.mark.parametrize("threads", [1, 24], ids=["one thread", "more threads than heads"])
def test_the_kernels(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        computed, rejected = check_calls(Kernels.apply, seed=2)
    finally:
        torch.set_num_threads(before)
    assert min(computed, rejected) > CALLS / 5, (computed, rejected)
