"""scripts/analyze.py on a tiny trained run and on results files: what it writes, and bad input."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import main
from scripts import analyze
from tests.support.tiny_run import write_experiment


def page_data(folder: Path) -> dict[str, Any]:
    html = (folder / "report.html").read_text()
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.DOTALL)
    assert found
    return json.loads(found.group(1))


def figures(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "analysis.json").read_text())


# ---- a checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    config = write_experiment(folder, train=[5, 3, 6, 4], val=[4, 0, 11, 9])
    settings = [f"runtime.output_dir={folder / 'run'}", "optim.epochs=1"]
    assert main.main(["--config", str(config), "--set", *settings]) == 0
    return folder / "run" / "last.pth"


def test_a_checkpoint(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyze.main(["--resume", str(checkpoint), "--score", "0.2"]) == 0
    folder = checkpoint.parent / "evaluation_last"
    found, data = figures(folder), page_data(folder)
    assert f"wrote {folder / 'report.html'}" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["analysis.json", "report.html"]
    evaluated = json.loads((checkpoint.parent / "evaluation" / "evaluation.json").read_text())
    assert found["detection"] == pytest.approx(evaluated["detection"], abs=1e-6)
    assert found["counts"] == pytest.approx(evaluated["counts"])
    assert found["objects"] == 24
    assert found["has_queries"]
    assert set(found["causes"]["all"]) == {"objects", "found", "budget", "ranking", "score", "class", "box"}
    assert [each["objects"] for each in found["per_image"]] == [4, 0, 11, 9]
    assert {"loss/class", "mAP"} <= found["training"].keys()
    assert [len(each["starts"]) for each in data["images"]] == [int(each["queries"]) for each in found["per_image"]]
    assert all(each["density"]["cells"] for each in data["images"])
    assert [(each["width"], each["height"]) for each in data["images"]] == [(48, 40)] * 4


def test_the_budget_is_to_blame_where_it_is_cut(checkpoint: Path, tmp_path: Path) -> None:
    """Two queries for up to 11 objects: no ranking finds the rest."""
    settings = ["model.d3q.min_queries=2", "model.d3q.max_queries=2"]
    assert analyze.main(["--resume", str(checkpoint), "--set", *settings, "--out", str(tmp_path / "cut")]) == 0
    causes = figures(tmp_path / "cut")["causes"]["all"]
    assert causes["budget"] > 0.5 * causes["objects"]


def test_query_starts_are_the_selected_proposals(checkpoint: Path, tmp_path: Path) -> None:
    """With a budget as large as twice the other, the first starts are the same, in the file's pixels."""
    starts = {}
    for queries in (5, 10):
        settings = [f"model.d3q.{name}_queries={queries}" for name in ("min", "max")]
        out = tmp_path / str(queries)
        assert analyze.main(["--resume", str(checkpoint), "--set", *settings, "--out", str(out)]) == 0
        starts[queries] = [np.array(each["starts"]) for each in page_data(out)["images"]]
    for few, many in zip(starts[5], starts[10], strict=True):
        assert np.abs(many[:5] - few).max() <= 0.11
        assert (many >= 0).all()
        assert (many <= [48, 40]).all()


def test_a_checkpoint_of_other_classes(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    annotations = json.loads((checkpoint.parents[1] / "data" / "val.json").read_text())
    annotations["categories"] = [{"id": 1, "name": "bird"}, {"id": 2, "name": "fish"}]
    (tmp_path / "other.json").write_text(json.dumps(annotations))
    settings = [f"data.val.annotations={tmp_path / 'other.json'}"]
    out = tmp_path / "out"
    assert analyze.main(["--resume", str(checkpoint), "--set", *settings, "--out", str(out)]) == 3
    assert "bird" in capsys.readouterr().err
    assert not out.exists()


def test_no_earlier_folder_is_written_to(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("x")
    assert analyze.main(["--resume", str(checkpoint), "--out", str(tmp_path)]) == 2
    assert "it is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_not_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.pth").write_bytes(b"nothing")
    assert analyze.main(["--resume", str(tmp_path / "x.pth")]) == 4
    assert "x.pth" in capsys.readouterr().err


# ---- results files

OBJECTS = {1: [(1, [4, 4, 8, 8]), (2, [20, 20, 10, 6])], 2: [(1, [30, 8, 5, 5])], 3: []}
HIT = {"image_id": 1, "category_id": 1, "bbox": [4, 4, 8, 8], "score": 0.9}
OTHER_CLASS = {"image_id": 1, "category_id": 1, "bbox": [20, 20, 10, 6], "score": 0.8}
SHIFTED = {"image_id": 2, "category_id": 1, "bbox": [32, 10, 5, 5], "score": 0.7}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for image_id, objects in OBJECTS.items():
        Image.new("RGB", (48, 40), (90, 120, 90)).save(tmp_path / "images" / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": 48, "height": 40})
        for category, box in objects:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "category_id": category, "bbox": box})
    categories = [{"id": 1, "name": "car"}, {"id": 2, "name": "ship"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    write_results(tmp_path, [HIT, OTHER_CLASS, SHIFTED])
    return tmp_path


def write_results(folder: Path, results: Any) -> None:
    (folder / "found.json").write_text(json.dumps(results))


def of_files(folder: Path, *more: str, images: bool = True) -> int:
    arguments = ["--results", str(folder / "found.json"), "--annotations", str(folder / "truth.json")]
    arguments += ["--images", str(folder / "images")] if images else []
    return analyze.main([*arguments, "--out", str(folder / "out"), *more])


def changed(folder: Path, **columns: Any) -> None:
    """Other columns of the annotation file."""
    content = json.loads((folder / "truth.json").read_text())
    (folder / "truth.json").write_text(json.dumps(content | columns))


def test_results_of_any_detector(files: Path) -> None:
    assert of_files(files) == 0
    found = figures(files / "out")
    assert found["causes"]["all"] == {"objects": 3, "found": 1, "nothing": 0, "score": 0, "class": 1, "box": 1}
    assert found["confusion"] == [[1, 0, 1], [1, 0, 0], [1, 0, 0]]
    assert found["errors"]["false_positives"]["localisation"] == 1
    assert not found["has_queries"]
    assert found["counts"] is None
    html = (files / "out" / "report.html").read_text()
    assert 'id="counts"' not in html
    assert "whether an object was ever queried is not known" in html
    assert [each["name"] for each in page_data(files / "out")["images"]] == ["1.png", "2.png", "3.png"]


def test_without_images(files: Path) -> None:
    assert of_files(files, images=False) == 0
    assert page_data(files / "out")["images"] == []


def test_few_images(files: Path) -> None:
    assert of_files(files, "--gallery", "1") == 0
    assert "1 of 3 images: those with the most misses" in (files / "out" / "report.html").read_text()


def test_no_detection_at_all(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_results(files, [])
    assert of_files(files) == 0
    assert figures(files / "out")["causes"]["all"]["nothing"] == 3
    assert "3 of 3 objects missed" in capsys.readouterr().out


def test_no_object_at_all(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(files, annotations=[])
    assert of_files(files) == 0
    assert "There are no objects to find" in capsys.readouterr().out
    assert figures(files / "out")["false_alarms"] == 3


def test_one_class(files: Path) -> None:
    boxes = [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 8, 8]}]
    changed(files, categories=[{"id": 1, "name": "car"}], annotations=boxes)
    assert of_files(files) == 0
    assert figures(files / "out")["confusion"] == [[1, 0], [2, 0]]


def test_classes_of_the_same_name(files: Path) -> None:
    changed(files, categories=[{"id": 1, "name": "car"}, {"id": 2, "name": "car"}])
    assert of_files(files) == 0
    groups = figures(files / "out")["causes"]["by_class"]
    assert {name: group["objects"] for name, group in groups.items()} == {"car (1)": 2, "car (2)": 1}


BAD: dict[str, tuple[Any, int, str]] = {
    "NaN score": ([HIT | {"score": float("nan")}], 3, r"found\.json: detection 0: score nan is not a number"),
    "unknown image": ([HIT | {"image_id": 77}], 3, r"found\.json: detection 0 has image_id 77, which the annotation"),
    "unknown class": ([HIT | {"category_id": 9}], 3, r"found\.json: detection 0 has category_id 9"),
    "not results": ({"images": []}, 3, r"found\.json: not a COCO results file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_results(files: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    results, code, message = BAD[name]
    write_results(files, results)
    assert of_files(files) == code
    assert re.search(message, capsys.readouterr().err)
    assert not (files / "out").exists()


def test_bad_annotations(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changed(files, images=[{"id": 1}, {"id": 2}, {"id": 3}])
    assert of_files(files) == 3
    assert "truth.json: an entry has no 'file_name'" in capsys.readouterr().err
    assert not (files / "out").exists()


def test_a_missing_image(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "images" / "2.png").unlink()
    assert of_files(files) == 3
    assert "2.png" in capsys.readouterr().err
    assert not (files / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --resume CHECKPOINT or --results FILE"),
        (["--resume", "a.pth", "--results", "b.json"], "give either --resume CHECKPOINT or --results FILE"),
        (["--resume", "a.pth", "--images", "x"], "--images goes with --results"),
        (["--results", "b.json"], "--results needs --annotations FILE"),
        (["--results", "b.json", "--annotations", "a.json", "--set", "x=1"], "--set goes with --resume"),
        (["--resume", "a.pth", "--score", "2"], "--score 2 is not in 0..1"),
        (["--resume", "a.pth", "--gallery", "-1"], "--gallery -1 is below 0"),
        (["--results", "b.json", "--annotations", "a.json", "--max-detections", "0"], "--max-detections 0 is below 1"),
    ],
)
def test_usage(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert analyze.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_folder_of_images_that_does_not_exist(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert of_files(files, "--images", str(files / "nowhere")) == 2
    assert "there is no such folder" in capsys.readouterr().err
