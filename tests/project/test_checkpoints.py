"""The detectors in checkpoints/: they load, are small, and find the objects of unseen scenes."""

import re
from pathlib import Path

import pytest

from datasets.synthetic.scene import CountDistribution, make_scene
from engine.checkpoints.checkpoint import load_checkpoint
from engine.commands.hub import load_detector
from engine.evaluation.gallery import match_detections

FOLDER = Path(__file__).parents[2] / "checkpoints"
FILES = sorted(FOLDER.glob("*.pth"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_small_self_contained_and_has_a_card(path: Path) -> None:
    assert path.stat().st_size <= 10_000_000
    checkpoint = load_checkpoint(path)
    assert not checkpoint.optimizer
    assert checkpoint.category_ids
    assert checkpoint.resize_factor > 0
    assert not re.search(r": /", checkpoint.config), "a path of another machine"
    assert f"## {path.name}" in (FOLDER / "README.md").read_text()
    kept = {file.name for file in (FOLDER / path.stem).iterdir()}
    assert kept == {"config.yaml", "log.txt", "metrics.jsonl", "evaluation.txt"}


def test_scenes_that_it_never_saw() -> None:
    """Of another seed than its training and validation images."""
    detector = load_detector(FOLDER / "dino_d3q_scenes.pth", system="dino_d3q", device="cpu")
    found = objects = shown = 0
    for index in range(8):
        scene = make_scene(index=index, seed=1001, counts=CountDistribution(max_count=150))
        detections = detector.predict(scene.image, conf=0.35)
        boxes, labels = scene.boxes, scene.labels
        matching = match_detections(
            *(detections.boxes.numpy(), detections.scores.numpy(), detections.labels.numpy(), boxes, labels),
            score_threshold=0.35,
        )
        found, objects, shown = found + int(matching.found.sum()), objects + len(boxes), shown + len(detections)
    assert objects > 50
    assert found / objects > 0.6
    assert found / max(shown, 1) > 0.6
