"""scripts/compare_results.py: figures side by side, unlike results refused, the page of two results."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import main
from scripts import compare_results, evaluate_results
from tests.support.tiny_run import write_experiment


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluations `a` and `b` of two trainings on the same data, with dumps."""
    folder = tmp_path_factory.mktemp("compared")
    config = write_experiment(folder, train=[5, 3, 6, 4], val=[4, 0, 11, 9])
    for name, seed in (("a", 0), ("b", 1)):
        run = folder / f"run_{name}"
        settings = [f"runtime.output_dir={run}", "optim.epochs=1", f"runtime.seed={seed}"]
        assert main.main(["--config", str(config), "--set", *settings]) == 0
        evaluated = [
            "--eval",
            "--dump",
            "--resume",
            str(run / "last.pth"),
            "--set",
            f"runtime.output_dir={folder / name}",
        ]
        assert main.main(evaluated) == 0
    return folder


def changed(folder: Path, name: str, **fields: Any) -> Path:
    """A copy of result `a` with other fields in its fingerprint."""
    record = json.loads((folder / "a" / "evaluation.json").read_text())
    record["fingerprint"] |= fields
    (folder / name).mkdir(exist_ok=True)
    path = folder / name / "evaluation.json"
    path.write_text(json.dumps(record))
    return path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 3) -> str:
    assert compare_results.main([str(each) for each in arguments]) == code
    return capsys.readouterr().err


def test_side_by_side(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    assert compare_results.main([str(folder / "run_a"), str(folder / "b"), "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^ +run_a +b +difference$", said, re.MULTILINE)
    assert re.search(r"^AP, % +\d+\.\d +\d+\.\d +[+-]\d+\.\d$", said, re.MULTILINE)
    assert re.search(r"^images at the limit +0 +0 +\+0$", said, re.MULTILINE)
    for row in ("AP50 of", "count MAE", "calibration error", "coverage, %"):
        assert row in said
    one, two = json.loads(file.read_text())["figures"].values()
    assert one["AP"] == json.loads((folder / "run_a/evaluation/evaluation.json").read_text())["detection"]["mAP"]
    assert one.keys() == two.keys()


def test_three_results(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_results.main([str(folder / name) for name in ("a", "b", "run_a")]) == 0
    assert re.search(r"^ +a +b +run_a$", capsys.readouterr().out, re.MULTILINE)


def test_a_results_file_compares_with_an_evaluation(folder: Path, tmp_path: Path) -> None:
    scored = tmp_path / "scored.json"
    given = ["--annotations", str(folder / "data/val.json"), "--results", str(folder / "a/predictions.json")]
    assert evaluate_results.main([*given, "--json", str(scored)]) == 0
    evaluated = json.loads((folder / "a/evaluation.json").read_text())["fingerprint"]
    assert json.loads(scored.read_text())["fingerprint"] == evaluated | {"scores": "as given"}
    assert compare_results.main([str(folder / "b"), str(scored)]) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("protocol", "coco"),
        ("classes", ["another"]),
        ("ignored", "nothing"),
        ("limits", {"per": "image", "detections": [1500]}),
        ("areas", {"all": [0, 1]}),
        ("iou_thresholds", [0.5]),
        ("recall_thresholds", [0.0]),
        ("scores", "corrected"),
        ("annotations", "0"),
    ],
)
def test_unlike_results_are_refused(
    folder: Path, field: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, folder / "a", changed(folder, f"other_{field}", **{field: value}))
    assert "cannot be compared: they differ in\n  " + field + ": " in said


def test_files_that_cannot_be_used(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = changed(folder, "old")
    old.write_text(json.dumps({"detection": {}}))
    assert 'it has no "fingerprint", which says what it is of; evaluate again' in refused(capsys, folder / "a", old)
    assert "holds no evaluation.json" in refused(capsys, folder / "a", tmp_path)
    assert "there is no such file or folder" in refused(capsys, folder / "a", tmp_path / "none")
    (tmp_path / "list.json").write_text("[]")
    assert 'it has no record "detection"' in refused(capsys, folder / "a", tmp_path / "list.json")
    (tmp_path / "torn.json").write_text("{")
    assert "cannot be read as JSON" in refused(capsys, folder / "a", tmp_path / "torn.json")
    assert "at least two results" in refused(capsys, folder / "a", code=2)
    three = [folder / "a"] * 3
    assert "two results, not 3" in refused(capsys, *three, "--html", tmp_path / "x.html", code=2)
    two = three[:2]
    assert "needs --annotations" in refused(capsys, *two, "--html", tmp_path / "x.html", code=2)
    missing = [
        *two,
        "--html",
        tmp_path / "x.html",
        "--annotations",
        folder / "data/val.json",
        "--images",
        tmp_path / "no",
    ]
    assert "no: there is no such folder" in refused(capsys, *missing, code=2)
    assert "go with --html" in refused(capsys, *two, "--annotations", folder / "data/val.json", code=2)


# ---- the page


def page(folder: Path, out: Path, *names: str) -> str:
    root = folder / "data" / "val"
    data = ["--annotations", str(folder / "data/val.json"), "--images", str(root)]
    assert compare_results.main([*(str(folder / name) for name in names), "--html", str(out), *data]) == 0
    return out.read_text()


def test_the_page(folder: Path, tmp_path: Path) -> None:
    html = page(folder, tmp_path / "page.html", "a", "b")
    assert "points of AP" in re.search("<h1>(.*?)</h1>", html)[1]  # type: ignore[index]
    assert len(re.findall('<li class="(?:un)?sure">', html)) >= 3
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", html)
    wrong = [int(each) for each in re.findall('data-wrong="([0-9]+)"', html)]
    changes = [abs(two - one) for one, two in zip(wrong[::2], wrong[1::2], strict=True)]
    assert changes == sorted(changes, reverse=True)
    assert 0 not in changes


def test_one_result_with_itself_shows_no_difference(folder: Path, tmp_path: Path) -> None:
    html = page(folder, tmp_path / "page.html", "a", "a")
    assert "No difference that these images show" in html
    assert "data-wrong" not in html


def test_the_page_needs_dumps_and_the_same_objects(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--annotations", folder / "data/val.json"]
    said = refused(capsys, folder / "run_a", folder / "b", "--html", tmp_path / "x.html", *data)
    assert "holds no predictions.json, which --html needs; make it: python main.py --eval" in said
    other = ["--annotations", folder / "data/train.json"]
    said = refused(capsys, folder / "a", folder / "b", "--html", tmp_path / "x.html", *other)
    assert "train.json" in said
    assert not (tmp_path / "x.html").exists()


def test_a_result_that_found_nothing(folder: Path, tmp_path: Path) -> None:
    silent = changed(folder, "silent").parent
    (silent / "predictions.json").write_text("[]")
    html = page(folder, tmp_path / "page.html", "silent", "a")
    assert "0 false alarms" in html
