"""Evaluation of hand-made predictions, in one process and gathered from two."""

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from datasets.structures import Batch, Target
from engine.distributed.processes import Processes
from engine.evaluation.evaluate import Evaluation, ImagePrediction, evaluate_detector, predict_batches
from engine.metrics.average_precision import AITOD
from models.structures import Detections

ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))


@dataclass(frozen=True)
class Truth:
    image_id: int
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray


def truth(image_id: int, boxes: list[list[float]]) -> Truth:
    array = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    count = len(array)
    return Truth(image_id, array, np.zeros(count, np.int64), array[:, 2] * array[:, 3], np.zeros(count, bool))


def prediction(image_id: int, boxes: list[list[float]], *, count: float | None = 2.0) -> ImagePrediction:
    corners = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    return ImagePrediction(
        image_id=image_id,
        boxes=corners,
        scores=torch.linspace(0.9, 0.5, len(corners)),
        labels=torch.zeros(len(corners), dtype=torch.int64),
        num_queries=10,
        predicted_count=count,
        density_map=None,
        density_extent=(1.0, 1.0),
    )


TRUTHS = [truth(5, [[10, 10, 8, 8], [30, 30, 8, 8]]), truth(7, []), truth(2**40, [[5, 5, 12, 12]])]


def evaluate_all(predictions: list[ImagePrediction], **options: object) -> Evaluation:
    return evaluate_detector([(predictions, 0.5)], TRUTHS, num_classes=1, protocol=AITOD, processes=ALONE, **options)  # type: ignore[arg-type]


def test_perfect_predictions_score_one_whatever_their_order() -> None:
    perfect = [
        prediction(2**40, [[5, 5, 17, 17]]),
        prediction(7, []),
        prediction(5, [[10, 10, 18, 18], [30, 30, 38, 38]]),
    ]
    evaluation = evaluate_all(perfect, picture_ids=frozenset({7}))
    assert evaluation.metrics.summary()["mAP"] == pytest.approx(1.0)
    assert [picture.image_id for picture in evaluation.pictures] == [7]
    assert evaluation.counts["count_MAE"] == pytest.approx(1.0)  # 2 predicted for 2, 0 and 1 objects
    assert evaluation.counts["coverage"] == 1.0
    assert evaluation.seconds_per_image == pytest.approx(0.5 / 3)


def test_a_miss_and_a_false_alarm_lower_the_score() -> None:
    evaluation = evaluate_all(
        [prediction(5, [[0, 0, 8, 8], [30, 30, 38, 38]]), prediction(7, []), prediction(2**40, [])]
    )
    assert 0.0 < evaluation.metrics.summary()["mAP_50"] < 0.5


def test_without_a_density_map_there_is_no_count_error() -> None:
    evaluation = evaluate_all([prediction(t.image_id, [], count=None) for t in TRUTHS])
    assert np.isnan(evaluation.counts["count_MAE"])
    assert evaluation.counts["mean_queries"] == 10


def test_corrected_scores_are_evaluated_beside_others_and_counted() -> None:
    """Image 5: the right detection is second by its published score, and first by its corrected one."""
    first = replace(
        prediction(5, [[0, 0, 8, 8], [10, 10, 18, 18]]), corrected_scores=torch.tensor([0.1, 0.4]), expected_count=1.5
    )
    empty = [
        replace(prediction(t.image_id, []), corrected_scores=torch.zeros(0), expected_count=0.5) for t in TRUTHS[1:]
    ]
    evaluation = evaluate_all([first, *empty])
    assert evaluation.corrected is not None
    assert evaluation.corrected.summary()["mAP_50"] > evaluation.metrics.summary()["mAP_50"]
    assert evaluation.counts["expected_MAE"] == pytest.approx((0.5 + 0.5 + 0.5) / 3)  # of 2, 0 and 1 objects
    assert evaluation.counts["expected_bias"] == pytest.approx((-0.5 + 0.5 - 0.5) / 3)
    same = replace(first, corrected_scores=first.scores)
    assert evaluate_all([same, *empty]).corrected is None
    unknown = evaluate_all([prediction(t.image_id, []) for t in TRUTHS])
    assert unknown.corrected is None
    assert np.isnan(unknown.counts["expected_MAE"])


def test_an_image_seen_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        evaluate_all([prediction(5, []), prediction(5, []), prediction(7, []), prediction(2**40, [])])


def test_a_missing_image_is_refused() -> None:
    with pytest.raises(ValueError, match="7"):
        evaluate_all([prediction(5, []), prediction(2**40, [])])


def test_predicting_keeps_nothing_for_a_backward_pass() -> None:
    class Detector(nn.Module):
        def forward(self, images: Tensor, padding_mask: Tensor) -> SimpleNamespace:
            assert torch.is_inference_mode_enabled()
            assert not self.training
            return SimpleNamespace(num_queries=torch.tensor([3]), aux={})

    def postprocess(output: object, sizes: object, original_sizes: object) -> list[SimpleNamespace]:
        return [Detections(torch.zeros(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.int64))]

    target = Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 5, size=(8, 8), original_size=(8, 8))
    batch = Batch(torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.bool), [target])
    found = list(predict_batches(Detector(), postprocess, [batch] * 2, device=torch.device("cpu"), amp="none"))
    assert [images[0].num_queries for images, _ in found] == [3, 3]
    assert not torch.is_inference_mode_enabled()
