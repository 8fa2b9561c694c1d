"""Density target: its mass and place. Density loss: its value, gradient and divisor."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from d3q import DensityLoss, density_focal_loss, density_target, density_targets
from scripts.benchmarks.targets import target_by_loop

SIZE = (800, 640)
CELLS = (200, 160)


@dataclass(frozen=True)
class Boxes:
    boxes_xyxy: Tensor


def random_boxes(count: int, *, seed: int = 0, crowded: bool = False) -> Tensor:
    """Tiny and not so tiny objects whose centres lie in the image; some at its border."""
    generator = torch.Generator().manual_seed(seed)
    height, width = SIZE
    extent = torch.tensor([width - 1.0, height - 1.0]) / (8 if crowded else 1)
    centre = torch.rand(count, 2, generator=generator) * extent
    centre[: count // 10, 0] = 0.0
    sides = torch.exp(torch.rand(count, 2, generator=generator) * 4 + 0.5)
    return torch.cat([centre - sides / 2, centre + sides / 2], dim=1)


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("count", [0, 1, 10, 300, 3000])
def test_the_mass_of_the_target(count: int, crowded: bool) -> None:
    boxes = random_boxes(count, seed=count, crowded=crowded)
    conserving = density_target(boxes, CELLS, SIZE, merge="sum")
    assert float(conserving.double().sum()) == pytest.approx(count, abs=1e-4, rel=1e-6)
    published = density_target(boxes, CELLS, SIZE, merge="max")
    assert float(published.double().sum()) <= count + 1e-4
    assert bool((published <= 1).all())
    if count == 3000:
        assert float(published.sum()) < 0.9 * count  # crowds lose mass


def test_the_two_merges_agree_where_nothing_overlaps() -> None:
    boxes = torch.tensor([[100.0, 100.0, 110.0, 112.0], [400.0, 500.0, 500.0, 620.0]])
    maximum, total = (density_target(boxes, CELLS, SIZE, merge=merge) for merge in ("max", "sum"))
    torch.testing.assert_close(maximum, total)
    assert float(maximum.sum()) == pytest.approx(2, abs=1e-5)


def test_the_kernel_sits_on_the_centre_cell() -> None:
    target = density_target(torch.tensor([[396.0, 200.0, 408.0, 210.0]]), CELLS, SIZE)
    assert target.argmax() == (205 // 4) * CELLS[1] + 402 // 4
    assert float(target.max()) == pytest.approx(0.6193, abs=1e-4)  # radius 1
    assert int((target > 0).sum()) == 9


def test_a_kernel_beyond_the_map_counts_for_nothing() -> None:
    boxes = torch.tensor([[2000.0, 100.0, 2010.0, 110.0], [-50.0, 100.0, -40.0, 110.0]])
    for merge in ("max", "sum"):
        assert float(density_target(boxes, CELLS, SIZE, merge=merge).sum()) == 0


def test_it_is_the_loop_over_objects() -> None:
    """The loop needs centres inside the map; kernels of many sizes, some cut off by the border."""
    boxes = random_boxes(300).clamp(min=0)
    expected = target_by_loop(boxes, CELLS, SIZE)
    assert len(expected[expected > 0].unique()) > 20  # several radii
    torch.testing.assert_close(density_target(boxes, CELLS, SIZE), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("merge", ["max", "sum"])
def test_a_batch_is_its_images(merge: str) -> None:
    boxes = [random_boxes(count, seed=count, crowded=True) for count in (40, 0, 1, 300)]
    together = density_targets(boxes, CELLS, SIZE, merge=merge)
    for own, target in zip(boxes, together, strict=True):
        torch.testing.assert_close(target, density_target(own, CELLS, SIZE, merge=merge), rtol=1e-6, atol=1e-7)
    assert float(together[1].sum()) == 0


def test_the_loss_is_zero_at_its_target_and_positive_elsewhere() -> None:
    target = density_target(random_boxes(40), CELLS, SIZE)
    assert float(density_focal_loss(target, target)) == pytest.approx(0, abs=1e-6)
    assert float(density_focal_loss(target * 0.9, target)) > 0
    assert float(density_focal_loss(target + 0.05, target)) > 0


def test_the_loss_is_finite_at_saturated_densities() -> None:
    """At p = 0 below a positive target the entropy is -t ln 1e-12, not a clamped 100 t."""
    density = torch.tensor([0.0, 1.0, 0.0, 1.0], requires_grad=True)
    target = torch.tensor([0.5, 0.5, 0.0, 0.0])
    each = torch.stack([density_focal_loss(d, t) for d, t in zip(density, target, strict=True)])
    expected = torch.tensor([0.25 * 0.5 * 27.6310, 0.25 * 0.5 * 27.6310, 0.0, 27.6310])
    torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-6)
    (gradient,) = torch.autograd.grad(each.sum(), density)
    assert bool(gradient.isfinite().all())


def loss_of(density_map: Tensor, targets: list[Boxes], **options: object) -> Tensor:
    aux = {"density_map": density_map, "padded_size": torch.tensor(SIZE)}
    return DensityLoss(**({"weight": 1.0, "merge": "max"} | options))(aux, targets)["density"]


def test_the_divisor_counts_the_objects_of_the_batch() -> None:
    targets = [Boxes(random_boxes(5)), Boxes(random_boxes(0)), Boxes(random_boxes(3, seed=1))]
    density_map = torch.rand(3, 1, *CELLS) * 0.2
    maps = torch.stack([density_target(target.boxes_xyxy, CELLS, SIZE) for target in targets])
    expected = density_focal_loss(density_map[:, 0], maps) / 8
    torch.testing.assert_close(loss_of(density_map, targets), expected)
    torch.testing.assert_close(loss_of(density_map, targets, weight=2.5), 2.5 * expected)


def test_a_batch_without_objects_divides_by_one() -> None:
    density_map = torch.full((2, 1, 10, 8), 0.1, requires_grad=True)
    loss = loss_of(density_map, [Boxes(random_boxes(0))] * 2)
    torch.testing.assert_close(loss, density_focal_loss(density_map, torch.zeros_like(density_map)))
    loss.backward()
    assert float(density_map.grad.abs().sum()) > 0
