"""Files of an evaluation, and the figures that go to `metrics.jsonl`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from engine.evaluation import artifacts
from engine.evaluation.artifacts import saturated_images, show_evaluation
from engine.evaluation.evaluate import ImagePrediction
from engine.evaluation.gallery import Picture
from engine.logger import RunLogger
from engine.metrics.protocols import AITOD
from tests.engine.evaluation.test_evaluate import TRUTHS, evaluate_all, prediction


def logged(folder: Path, predictions: list[ImagePrediction], scores: str, **options: object) -> dict[str, float]:
    """The record of an evaluation in `metrics.jsonl`."""
    with RunLogger(folder, is_main=True) as logger:
        show_evaluation(
            evaluate_all(predictions, **options),
            objects=TRUTHS,
            class_names=["a"],
            read_image=lambda index: Image.new("RGB", (32, 32)),
            scores=scores,
            score_threshold=0.5,
            logger=logger,
            folder=folder,
            step=3,
        )
    return json.loads((folder / "metrics.jsonl").read_text())


def test_published_and_corrected_figures_stand_side_by_side(tmp_path: Path) -> None:
    """Image 5: the right detection is second by its published score, and first by its corrected one."""
    first = replace(
        prediction(5, [[0, 0, 8, 8], [10, 10, 18, 18]]), corrected_scores=torch.tensor([0.1, 0.4]), expected_count=1.5
    )
    empty = [
        replace(prediction(t.image_id, []), corrected_scores=torch.zeros(0), expected_count=0.5) for t in TRUTHS[1:]
    ]
    numbers = logged(tmp_path, [first, *empty], "published")
    assert numbers["corrected/mAP_50"] > numbers["mAP_50"]
    assert numbers["corrected/calibration_error"] != numbers["calibration_error"]
    assert numbers["count/expected_MAE"] == pytest.approx(0.5)
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["scores"] == "published"
    assert report["corrected"]["detection"]["mAP_50"] == numbers["corrected/mAP_50"]
    assert "with corrected scores" in (tmp_path / "evaluation.txt").read_text()


@pytest.mark.parametrize(
    ("corrected", "shown", "name"), [(None, [0.9, 0.5], "score"), ([0.1, 0.4], [0.1, 0.4], "corrected score")]
)
def test_the_gallery_draws_by_corrected_scores_where_there_are_any(
    corrected: list[float] | None,
    shown: list[float],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: list[Picture] = []

    def draw(pictures: list[Picture], *_: object) -> Image.Image:
        drawn.extend(pictures)
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(artifacts, "draw_gallery", draw)
    found = replace(
        prediction(5, [[0, 0, 8, 8], [10, 10, 18, 18]]),
        corrected_scores=None if corrected is None else torch.tensor(corrected),
    )
    rest = [prediction(truth.image_id, []) for truth in TRUTHS[1:]]
    logged(tmp_path, [found, *rest], "published", picture_ids=frozenset({5}))
    assert drawn[0].scores.tolist() == pytest.approx(shown)
    assert drawn[0].score_name == name


def test_without_other_scores_there_is_one_result(tmp_path: Path) -> None:
    numbers = logged(tmp_path, [prediction(truth.image_id, []) for truth in TRUTHS], "published")
    assert not [name for name in numbers if name.startswith(("corrected/", "count/expected_"))]
    assert json.loads((tmp_path / "evaluation.json").read_text())["corrected"] is None


def test_images_at_the_detection_limit_are_counted() -> None:
    boxes = [[float(i), 0.0, i + 8.0, 8.0] for i in range(4)]
    found = evaluate_all([prediction(t.image_id, boxes if t is TRUTHS[0] else boxes[:2]) for t in TRUTHS]).predictions
    assert saturated_images(found, replace(AITOD, max_detections=(3, 5))) == 0
    assert saturated_images(found, replace(AITOD, max_detections=(4,))) == 1
    assert saturated_images(found, replace(AITOD, max_detections=(2,))) == len(TRUTHS)
    found.detections[:2, 5] = 1  # two of four have another class
    assert saturated_images(found, replace(AITOD, max_detections=(3,))) == 0
    assert saturated_images(found, replace(AITOD, max_detections=(3,), limits_all_classes=True)) == 1
