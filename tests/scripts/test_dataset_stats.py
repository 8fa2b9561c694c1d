"""Tables, figures and plot of a data set, from its annotations."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from scripts import dataset_stats
from tests.support.tiny_run import write_experiment

SIDES = (3, 7, 8, 20, 40)


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Three training images of 400x200 px, which are halved: one with the objects of SIDES and a crowd, one with one
    object, one without any."""
    path = write_experiment(tmp_path, train=[1], val=[2])
    path.write_text(path.read_text().replace("image_size: [48, 48]", "image_size: [100, 200]"))
    boxes = [(1, side, 0) for side in SIDES] + [(1, 50, 1), (2, 7, 0)]
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 400, "height": 200} for i in (1, 2, 3)],
        "annotations": [
            {"id": i, "image_id": image, "category_id": 1 + (side > 30), "bbox": [5, 5, side, side], "iscrowd": crowd}
            for i, (image, side, crowd) in enumerate(boxes)
        ],
        "categories": [{"id": 1, "name": "square"}, {"id": 2, "name": "other"}],
    }
    (tmp_path / "data" / "train.json").write_text(json.dumps(document))
    return path


def show(experiment: Path, *arguments: str) -> int:
    return dataset_stats.main(["--config", str(experiment), *arguments])


def figures(experiment: Path, out: Path) -> dict[str, Any]:
    assert show(experiment, "--out", str(out)) == 0
    return json.loads((out / "statistics.json").read_text())


def test_sizes_counts_and_classes(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    found = figures(experiment, tmp_path / "out")
    train = found["splits"]["train"]
    assert (train["images"], train["images_without_objects"], train["objects"]) == (3, 1, 6)
    assert train["not_used"] == {"crowd": 1}
    assert train["size"]["file"]["bins"] == {"very tiny": 3, "tiny": 1, "small": 1, "medium": 1}
    assert train["size"]["scaled"]["bins"] == {"very tiny": 4, "tiny": 1, "small": 1, "medium": 0}
    assert [train["size"][place]["below_4_px"] for place in ("file", "scaled")] == [1, 3]
    assert train["shrunk_below_4_px"] == 2
    assert train["objects_per_image"]["most"] == 5
    assert train["classes"]["square"] == {"objects": 5, "images": 2, "median_size": 7.0}
    assert train["classes"]["other"]["objects"] == 1
    assert found["suggested"] == {"image_size": [192, 384], "min_queries": 20, "num_queries": 50}
    said = capsys.readouterr().out
    assert re.search(r"very tiny, 0 to 8 px +3 \(50\.0%\) +4 \(66\.7%\)", said)
    assert "smaller than 4 px: 2 (33.3%) in train" in said
    assert "no plot: matplotlib is not installed" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["statistics.json"]


def test_the_suggestion_is_accepted(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show(experiment) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    settings = line.removeprefix("to take the suggestion: --set ").replace("'", "").split()
    assert show(experiment, "--set", *settings) == 0
    capsys.readouterr()
    assert show(experiment, "--set", "model.d3q=null", "model.num_classes=null") == 0
    assert "min_queries" not in capsys.readouterr().out


@pytest.mark.parametrize("objects", [True, False])
def test_the_plot(experiment: Path, tmp_path: Path, objects: bool) -> None:
    pytest.importorskip("matplotlib")
    if not objects:
        file = tmp_path / "data" / "train.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    figures(experiment, tmp_path / "out")
    assert (tmp_path / "out" / "statistics.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_refused(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "statistics.json").touch()
    assert show(experiment, "--out", str(tmp_path / "out")) == 2
    assert "statistics.json exists" in capsys.readouterr().err
    assert show(experiment, "--out", str(experiment)) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert show(experiment, "--set", "data.train.annotations=none.json") == 3
    assert "no such annotation file" in capsys.readouterr().err
