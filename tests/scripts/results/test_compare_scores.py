"""scripts/compare_scores.py on a tiny trained run."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import main
from engine.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from engine.evaluation.evaluate import GatheredPredictions
from engine.metrics.reliability import reliability
from scripts import compare_scores
from tests.support.tiny_run import write_experiment


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    config = write_experiment(folder, train=[3, 2], val=[4, 0, 2])
    settings = [f"runtime.output_dir={folder / 'run'}", "optim.epochs=1"]
    assert main.main(["--config", str(config), "--set", *settings]) == 0
    return folder / "run" / "last.pth"


def altered(checkpoint: Path, path: Path, change: Callable[[str], str]) -> Path:
    """A copy of the checkpoint with another config."""
    content = load_checkpoint(checkpoint)
    save_checkpoint(path, replace(content, config=change(content.config)))
    return path


def test_the_figures_are_those_of_evaluations_with_both_scores(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also for a checkpoint that was saved before the key existed."""
    earlier = altered(checkpoint, tmp_path / "earlier.pth", lambda text: re.sub(r"\n +scores: published", "", text))
    assert "scores:" not in load_checkpoint(earlier).config
    assert compare_scores.main(["--resume", str(earlier), str(checkpoint), "--json", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    figures = json.loads((tmp_path / "out.json").read_text())
    assert figures[str(earlier)] == figures[str(checkpoint)]
    for scores in ("published", "corrected"):
        folder = tmp_path / scores
        settings = [f"evaluation.scores={scores}", f"runtime.output_dir={folder}"]
        assert main.main(["--eval", "--resume", str(checkpoint), "--set", *settings]) == 0
        report = json.loads((folder / "evaluation.json").read_text())
        found = figures[str(checkpoint)]["scores"][scores]
        assert found["AP, %"] == pytest.approx(100 * report["detection"]["mAP"])
        assert found["calibration error"] == pytest.approx(report["calibration"]["error"])
        if scores == "published":
            assert report["corrected"]["calibration"]["error"] == pytest.approx(
                figures[str(checkpoint)]["scores"]["corrected"]["calibration error"]
            )
    assert figures[str(checkpoint)]["counts"]["expected count"]["MAE"] == pytest.approx(
        report["counts"]["expected_MAE"], rel=1e-5
    )
    assert "| 2 checkpoints | published | corrected |" in printed


def test_what_cannot_be_compared_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unweighted = ["--resume", str(checkpoint), "--set", "criterion.decoder.no_object_weight=0"]
    assert compare_scores.main(unweighted) == 2
    assert "no_object_weight above 0 (here: 0)" in capsys.readouterr().err
    other = altered(checkpoint, tmp_path / "other.pth", lambda text: text.replace("val.json", "train.json"))
    assert compare_scores.main(["--resume", str(checkpoint), str(other)]) == 2
    assert "different validation images" in capsys.readouterr().err


def test_counts_by_hand() -> None:
    """Two images; their detections were gathered in the other order."""
    found = GatheredPredictions(
        image_ids=np.array([1, 2]),
        first_detection=np.array([3, 0]),
        num_detections=np.array([2, 3]),
        num_queries=np.array([2.0, 3.0]),
        predicted_counts=None,
        expected_counts=np.array([1.5, 2.0]),
        detections=torch.tensor(
            [[0, 0, 4, 4, score, 0, corrected] for score, corrected in [(0.9, 0.6), (0.8, 0.4), (0.5, 0.1)]]
            + [[0, 0, 4, 4, 0.6, 0, 0.5], [0, 0, 4, 4, 0.4, 0, 0.2]]
        ).numpy(),
        pictures=[],
        seconds_per_image=0.0,
    )
    errors = dict(compare_scores.count_errors(found, np.array([2, 2])))
    assert errors == {
        "expected count": {"MAE": 0.25, "bias": -0.25},
        "published scores of at least 0.5": {"MAE": 1.0, "bias": 0.0},  # 1 and 3
        "corrected scores of at least 0.5": {"MAE": 1.0, "bias": -1.0},  # 1 and 1
    }


def test_the_diagram_is_drawn_of_one_or_more(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    diagram = reliability(np.array([0.1, 0.8]), np.array([False, True]))
    both = {"published": diagram, "corrected": diagram}
    for number in (1, 3):
        compare_scores.draw([both] * number, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 10_000
