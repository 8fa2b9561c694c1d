"""Corrected scores: the effect of the background's loss weight is undone; counts follow from them."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from models.postprocess import PostProcess, corrected_logits


def output(logits: Tensor, counts: list[int]) -> SimpleNamespace:
    """(B, Q, K + 1) logits of one layer; the first `counts` queries of each image are real."""
    boxes = torch.full((1, *logits.shape[:2], 4), 0.25)
    return SimpleNamespace(queries=SimpleNamespace(counts=counts, logits=logits[None], boxes=boxes))


def test_the_background_is_divided_by_its_weight() -> None:
    probabilities = torch.tensor([[0.2, 0.3, 0.5]])
    corrected = corrected_logits(probabilities.log(), no_object_weight=0.1).softmax(-1)
    torch.testing.assert_close(corrected, torch.tensor([[0.2, 0.3, 5.0]]) / 5.5)
    torch.testing.assert_close(corrected_logits(probabilities, no_object_weight=1.0), probabilities)


def test_a_classifier_trained_with_a_weighted_background_is_calibrated_again() -> None:
    """One weight per class, the optimum of the weighted cross-entropy on 1,000 queries, 50 of them objects."""
    targets = torch.tensor([0] * 20 + [1] * 30 + [2] * 950)
    weight = torch.tensor([1.0, 1.0, 0.1])
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-14)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(logits.expand(1000, 3), targets, weight.double())
        value.backward()
        return value

    optimizer.step(loss)
    assert float(logits.detach().softmax(0)[2]) == pytest.approx(95 / 145, abs=1e-5)
    found = corrected_logits(logits.detach()[None], no_object_weight=0.1).softmax(-1)[0]
    torch.testing.assert_close(found, torch.tensor([0.02, 0.03, 0.95], dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scores", ["published", "corrected"])
def test_detections_carry_both_scores_and_the_expected_count(scores: str) -> None:
    torch.manual_seed(0)
    logits = 3 * torch.randn(2, 30, 4)
    run = PostProcess(classification="softmax", max_detections=9, scores=scores, no_object_weight=0.1)  # type: ignore[arg-type]
    alone, beside = run(output(logits, [30, 12]), [(64, 64)] * 2, [(64, 64)] * 2)
    assert (len(alone.scores), len(beside.scores)) == (30, 12)  # padded queries are nowhere
    probabilities = logits[1, :12].softmax(-1)
    probabilities[:, -1] /= 0.1
    probabilities /= probabilities.sum(-1, keepdim=True)
    assert float(beside.object_probability.sum()) == pytest.approx(float(12 - probabilities[:, -1].sum()), rel=1e-5)
    assert sorted(beside.corrected_scores.tolist()) == pytest.approx(
        sorted(probabilities[:, :-1].amax(-1).tolist()), rel=1e-5
    )
    assert bool((beside.scores.diff() <= 0).all())
    if scores == "corrected":
        torch.testing.assert_close(beside.scores, beside.corrected_scores)
    else:
        assert bool((beside.scores > beside.corrected_scores).all())


def test_the_order_within_a_class_may_change() -> None:
    """Published: 0.5 beats 0.45. With the background divided by 0.1, 0.5 / 5.5 is less than 0.45 / 1.9."""
    logits = torch.tensor([[[0.5, 1e-9, 0.5], [0.45, 0.45, 0.1]]]).log()
    published, corrected = (
        PostProcess(classification="softmax", max_detections=9, scores=scores, no_object_weight=0.1)(  # type: ignore[arg-type]
            output(logits, [2]), [(8, 8)], [(8, 8)]
        )[0]
        for scores in ("published", "corrected")
    )
    assert published.scores.tolist() == pytest.approx([0.5, 0.45])
    assert corrected.scores.tolist() == pytest.approx([0.45 / 1.9, 0.5 / 5.5], rel=1e-4)


def test_sigmoid_heads_have_neither() -> None:
    found = PostProcess(classification="focal", max_detections=5)(output(torch.randn(1, 4, 3), [4]), [(8, 8)], [(8, 8)])
    assert found[0].corrected_scores is None
    assert found[0].object_probability is None


def test_a_background_without_loss_cannot_be_corrected() -> None:
    run = PostProcess(classification="softmax", max_detections=5, no_object_weight=0.0)
    assert run(output(torch.randn(1, 4, 3), [4]), [(8, 8)], [(8, 8)])[0].corrected_scores is None
