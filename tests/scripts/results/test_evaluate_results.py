"""scripts/evaluate_results.py: figures of a results file, the official implementation beside them, bad files."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

from scripts import evaluate_results
from scripts.support import official_metrics

FOLDER = Path(__file__).parents[2] / "data" / "eval"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A part of the recorded detections."""
    folder = tmp_path_factory.mktemp("eval")
    content = {}
    for name in ("gt", "dets"):
        with gzip.open(FOLDER / f"{name}.json.gz", "rt") as file:
            content[name] = json.load(file)
    chosen = sorted(image["id"] for image in content["gt"]["images"])[:4]
    gt = content["gt"] | {"images": [image for image in content["gt"]["images"] if image["id"] in chosen]}
    gt["annotations"] = [each for each in gt["annotations"] if each["image_id"] in chosen]
    found = [each for each in content["dets"] if each["image_id"] in chosen]
    (folder / "gt.json").write_text(json.dumps(gt))
    (folder / "dets.json").write_text(json.dumps(found))
    return folder / "gt.json", folder / "dets.json"


def evaluated(annotations: Path, results: Path, *more: object) -> int:
    return evaluate_results.main(["--annotations", str(annotations), "--results", str(results), *map(str, more)])


@pytest.mark.parametrize("protocol", ["aitod", "coco"])
def test_both_implementations_agree(
    files: tuple[Path, Path], protocol: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    assert evaluated(*files, "--protocol", protocol, "--pycocotools", "--json", out) == 0
    assert re.search(r"both agree: the largest difference is \d\.\de[+-]\d\d", capsys.readouterr().out)
    figures = json.loads(out.read_text())
    assert figures["detection"]["mAP_50"] == pytest.approx(figures["pycocotools"]["mAP_50"], abs=1e-12)
    assert 0 < figures["detection"]["mAP"] < figures["detection"]["mAP_50"] < 1
    assert len(figures["pycocotools"]) == 3 + {"aitod": 4, "coco": 3}[protocol]


def test_a_difference_is_reported(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(official_metrics, "official_summary", lambda *_: {"mAP": 0.5})
    assert evaluated(*files, "--pycocotools") == 7
    assert "THEY DIFFER" in capsys.readouterr().out


def test_no_detection_is_an_ap_of_zero(files: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("[]")
    assert evaluated(files[0], tmp_path / "none.json", "--pycocotools", "--json", tmp_path / "out.json") == 0
    assert json.loads((tmp_path / "out.json").read_text())["detection"]["mAP"] == 0


GOOD: dict[str, Any] = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "score": 0.5}
BAD: dict[str, tuple[object, str]] = {
    "not json": ("{", r"results\.json: cannot be read as JSON"),
    "an object": ({"annotations": []}, r"not a COCO results file: it holds a dict, not a list"),
    "a text id": (
        [GOOD | {"image_id": "a.png"}],
        r"detection 0: image_id 'a\.png' is not the id of the annotation file",
    ),
    "no box": ([GOOD | {"bbox": None}], r"detection 0: bbox None is not \[x, y, width, height\]"),
    "three numbers": ([GOOD | {"bbox": [1, 2, 3]}], r"bbox \[1, 2, 3\] is not"),
    "no score": ([{k: v for k, v in GOOD.items() if k != "score"}], r"score None is not a number"),
    "huge": ([GOOD | {"score": 10**400}], r"score 1000000000.* is not a number"),
    "nan": ([GOOD | {"score": float("nan")}], r"score nan is not a number"),
    "unknown image": (
        [GOOD | {"image_id": 10**9}],
        r"detection 0 has image_id 1000000000, which the annotation file does",
    ),
    "unknown category": ([GOOD | {"category_id": 999}], r"detection 0 has category_id 999; the annotation file lists"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_results(name: str, files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, message = BAD[name]
    images = json.loads(files[0].read_text())["images"]
    text = content if isinstance(content, str) else json.dumps(content)
    text = text.replace('"image_id": 1,', f'"image_id": {images[0]["id"]},')
    (tmp_path / "results.json").write_text(text)
    assert evaluated(files[0], tmp_path / "results.json") == 3
    assert re.search(message, capsys.readouterr().err)


def test_bad_annotations(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluated(files[1], files[1]) == 3
    assert 'not a COCO annotation file: no list "images"' in capsys.readouterr().err


def test_a_fault_of_the_annotations_is_not_blamed_on_the_results(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(files[0].read_text())
    del content["annotations"][0]["bbox"]
    (tmp_path / "broken.json").write_text(json.dumps(content))
    assert evaluated(tmp_path / "broken.json", files[1]) == 3
    error = capsys.readouterr().err
    assert "broken.json: " in error
    assert "bbox" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--json", "none/x.json"], "there is no folder"), (["--max-detections", "0"], "--max-detections 0 is below 1")],
)
def test_usage(
    arguments: list[str], message: str, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluated(*files, *arguments) == 2
    assert message in capsys.readouterr().err


def test_other_keys_of_a_result_change_nothing(files: tuple[Path, Path], tmp_path: Path) -> None:
    detections = json.loads(files[1].read_text())
    extended = [{**entry, "caption": "a car", "segmentation": [[0, 0, 1, 1, 0, 1]]} for entry in detections]
    (tmp_path / "more.json").write_text(json.dumps(extended))
    assert evaluated(files[0], tmp_path / "more.json", "--pycocotools") == 0
