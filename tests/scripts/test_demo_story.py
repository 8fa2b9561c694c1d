"""The closing lines of the demo."""

import json
from pathlib import Path

import pytest

from scripts.support.demo_story import FOLDERS, tell


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("model: {num_queries: 450}\n")
    counts = {"images": 50.0, "count_MAE": 5.91, "count_bias": 5.49, "mean_queries": 90.9, "coverage": 0.98}
    report = {
        "detection": {"mAP": 0.3},
        "counts": counts,
        "classes": [{"name": "a", "objects": 1000.0}, {"name": "b", "objects": 200.0}],
        "seconds_per_image": 0.2,
    }
    for name in FOLDERS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.json").write_text(json.dumps(report))
    return tmp_path


def test_the_lines_of_a_sound_run(run: Path) -> None:
    assert tell(run, 700) == (
        True,
        [
            "resume check  the checkpoint gives exactly the numbers of the run",
            "count         off by 5.9 objects of 24 per image (bias +5.5); 91 queries per image, where a fixed budget "
            "has 450, and enough of them in 98 % of the images",
            "time          12 minutes since set-up; 5.0 images/s in the evaluation",
        ],
    )


def test_other_numbers_are_reported(run: Path) -> None:
    path = run / FOLDERS[1] / "evaluation.json"
    path.write_text(path.read_text().replace("0.3", "0.30001"))
    same, lines = tell(run, 1)
    assert not same
    assert "NUMBERS DIFFER" in lines[0]
