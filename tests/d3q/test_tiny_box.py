"""The log-size box distance: its value, its gradient at tiny and vanished boxes, loss and cost in step."""

import pytest
import torch
from torch import Tensor

from d3q import LogSizeL1


def boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=generator)
    return torch.cat([centre, 0.002 + 0.05 * torch.rand(count, 2, generator=generator)], dim=1)


def test_value() -> None:
    pred = torch.tensor([[0.5, 0.5, 0.02, 0.01]])
    target = torch.tensor([[0.4, 0.7, 0.01, 0.04]])
    expected = 0.1 + 0.2 + torch.log(torch.tensor(2.0)) + torch.log(torch.tensor(4.0))
    torch.testing.assert_close(LogSizeL1().aligned(pred, target)[0], expected, rtol=1e-4, atol=0)


def test_a_size_error_counts_by_its_ratio() -> None:
    target = boxes(20, 0)
    wider = target * torch.tensor([1, 1, 1.5, 1])
    torch.testing.assert_close(LogSizeL1().aligned(wider, target), torch.full((20,), 0.4055), atol=1e-3, rtol=0)


def test_cost_and_loss_are_one_formula() -> None:
    pred, target = boxes(7, 1), boxes(5, 2)
    pairwise = LogSizeL1().pairwise(pred, target)
    assert pairwise.shape == (7, 5)
    for i in range(7):
        aligned = LogSizeL1().aligned(pred[i].expand(5, 4), target)
        torch.testing.assert_close(pairwise[i], aligned, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-12, 1e-6])
def test_it_stays_finite_at_vanished_sizes(size: float) -> None:
    pred = torch.tensor([[0.5, 0.5, size, size], [0.2, 0.2, 0.01, 0.01]], requires_grad=True)
    target = boxes(2, 3)
    distance = LogSizeL1().aligned(pred, target)
    assert bool(distance.isfinite().all())
    (gradient,) = torch.autograd.grad(distance.sum(), pred)
    assert bool(gradient.isfinite().all())
    assert bool(LogSizeL1().pairwise(pred.detach(), target).isfinite().all())


def test_it_is_finite_for_a_target_without_area() -> None:
    target = torch.tensor([[0.5, 0.5, 0.0, 0.0]])
    assert bool(LogSizeL1().aligned(boxes(1, 4), target).isfinite().all())


def test_a_tiny_box_has_a_gradient_of_one_over_its_size() -> None:
    pred = torch.tensor([[0.5, 0.5, 0.005, 0.2]], requires_grad=True)
    target = torch.tensor([[0.5, 0.5, 0.004, 0.1]])
    (gradient,) = torch.autograd.grad(LogSizeL1().aligned(pred, target).sum(), pred)
    torch.testing.assert_close(gradient[0, 2:], torch.tensor([200.0, 5.0]))


def test_both_forms_agree_on_ordinary_boxes() -> None:
    pred_unact, target = torch.logit(boxes(50, 5)).requires_grad_(), boxes(50, 6)
    values, gradients = [], []
    for form in ("clamped", "logsigmoid"):
        distance = LogSizeL1(form=form).aligned(pred_unact.sigmoid(), target, pred_unact)
        values.append(distance.detach())
        gradients.append(torch.autograd.grad(distance.sum(), pred_unact)[0])
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=2e-6)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("logit", [-28.0, -104.0, -1e4])
def test_only_logsigmoid_brings_a_vanished_box_back(logit: float) -> None:
    target = torch.tensor([[0.5, 0.5, 0.01, 0.01]])
    gradients = {}
    for form in ("clamped", "logsigmoid"):
        pred_unact = torch.tensor([[0.0, 0.0, logit, logit]], requires_grad=True)
        distance = LogSizeL1(form=form).aligned(pred_unact.sigmoid(), target, pred_unact)
        assert bool(distance.isfinite().all())
        gradients[form] = torch.autograd.grad(distance.sum(), pred_unact)[0][0, 2:].tolist()
    assert gradients == {"clamped": [0.0, 0.0], "logsigmoid": [-1.0, -1.0]}


def test_logsigmoid_of_a_proposal_without_anchor() -> None:
    """Invalid tokens have infinite logits: their box is the whole image."""
    pred_unact = torch.full((1, 4), torch.inf, requires_grad=True)
    target = torch.tensor([[0.5, 0.5, 0.01, 0.01]])
    distance = LogSizeL1(form="logsigmoid").aligned(pred_unact.sigmoid(), target, pred_unact)
    torch.testing.assert_close(distance, LogSizeL1().aligned(torch.ones(1, 4), target))
    assert torch.autograd.grad(distance.sum(), pred_unact)[0].tolist() == [[0.0] * 4]


def test_logsigmoid_needs_logits() -> None:
    with pytest.raises(ValueError, match="pred_unact"):
        LogSizeL1(form="logsigmoid").aligned(boxes(1, 0), boxes(1, 1))
