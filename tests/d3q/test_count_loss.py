"""Count loss: its value, its gradient, and images without objects."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from d3q import CountLoss, log_count_error


@dataclass(frozen=True)
class Boxes:
    boxes_xyxy: Tensor


def maps_of(counts: list[float], cells: int = 100) -> Tensor:
    """(B, 1, 10, 10) flat density maps that add up to the counts."""
    return torch.tensor(counts)[:, None, None, None].expand(-1, 1, 10, 10) / cells


def targets_of(counts: list[int]) -> list[Boxes]:
    return [Boxes(torch.zeros(count, 4)) for count in counts]


def test_a_right_count_has_no_loss_and_no_gradient() -> None:
    density_map = maps_of([0.0, 1.0, 40.0]).clone().requires_grad_()
    loss = CountLoss(weight=1.0)({"density_map": density_map}, targets_of([0, 1, 40]))["count"]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-9)
    assert float(density_map.grad.abs().max()) < 1e-6


def test_the_value_is_the_mean_over_images_times_the_weight() -> None:
    found = CountLoss(weight=2.0)({"density_map": maps_of([3.0, 9.0])}, targets_of([1, 0]))["count"]
    small, large = torch.tensor(4 / 2).log(), torch.tensor(10.0).log()  # below and above beta = 1
    torch.testing.assert_close(found, 2 * (small**2 / 2 + large - 0.5) / 2)


def test_too_many_and_too_few_by_the_same_factor_cost_the_same() -> None:
    errors = log_count_error(torch.tensor([19.0, 4.0]), torch.tensor([9, 9]))
    torch.testing.assert_close(errors[0], errors[1])


@pytest.mark.parametrize("objects", [0, 1, 30, 2500])
@pytest.mark.parametrize("count", [0.0, 0.5, 29.0, 31.0, 1e4])
def test_the_gradient_pulls_to_the_objects_and_is_bounded(count: float, objects: int) -> None:
    value = torch.tensor([count], requires_grad=True)
    (gradient,) = torch.autograd.grad(log_count_error(value, torch.tensor([objects])).sum(), value)
    assert float(gradient.abs()) <= 1 / (count + 1) + 1e-7
    assert torch.sign(gradient) == torch.sign(value - objects)


def test_every_cell_gets_the_same_gradient_empty_ones_too() -> None:
    density_map = maps_of([50.0]).clone().requires_grad_()
    CountLoss(weight=1.0)({"density_map": density_map}, targets_of([5]))["count"].backward()
    assert float(density_map.grad.std()) == pytest.approx(0, abs=1e-9)
    assert float(density_map.grad.min()) > 0


def test_half_precision_maps_are_summed_in_float32() -> None:
    density_map = torch.full((1, 1, 200, 200), 0.1, dtype=torch.float16)
    loss = CountLoss(weight=1.0)({"density_map": density_map}, targets_of([4000]))["count"]
    assert loss.dtype == torch.float32
    assert float(loss) < 1e-6
