"""--check: all problems at once, for people and for programs, and nothing that looks like a run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import main
from engine.checkpoints.sealed_file import write_archive
from engine.commands.preflight import Preflight, TrialError, try_step
from engine.step_errors import StepMemoryError
from tests.support.tiny_run import write_experiment


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    return write_experiment(tmp_path, train=[5, 0, 3], val=[2, 1])


def run(config: Path, *arguments: str, settings: tuple[str, ...] = ()) -> int:
    output = f"runtime.output_dir={config.parent / 'run'}"
    return main.main(["--config", str(config), *arguments, "--set", output, *settings])


def records(config: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (config.parent / "run" / "check.jsonl").read_text().splitlines()]


def spoil(path: Path, change: Any) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def test_problems_of_every_part_are_listed_at_once(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = experiment.parent / "data"
    spoil(data / "train.json", lambda d: d["annotations"][1].update(bbox=[1, 2, 3]))
    spoil(data / "train.json", lambda d: d["images"][1].update(file_name="none.png"))
    spoil(data / "val.json", lambda d: d["categories"][0].update(name="disc"))
    (data / "val" / "0.png").write_text("hello")
    assert run(experiment, "--check", "--resume", "none.pth", settings=("optim.clip_grad_norm=0",)) == 3
    printed = capsys.readouterr().out
    found = {record["reason"]: record for record in records(experiment) if record["kind"] == "problem"}
    expected = {
        "box_length": ("training data", 3),
        "missing_image": ("training data", 3),
        "not_an_image": ("evaluation images", 3),
        "categories_differ": ("both splits", 3),
        "DamagedError": ("weights", 4),
    }
    assert {reason: (record["part"], record["exit_code"]) for reason, record in found.items()} == expected
    for reason in expected:
        assert f"  {reason}: 1\n" in printed
    assert "one training step: ok" in printed
    assert "errors: 5\n" in printed
    assert records(experiment)[-1]["errors"] == 5


def test_the_rest_is_looked_at_without_data(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("data.root=nowhere", "model.d3q.initial_density=null")
    assert run(experiment, "--check", settings=settings) == 3
    printed = capsys.readouterr().out
    assert "weights: ok" in printed
    assert "not tried, without training data" in printed
    problems = [(record["part"], record["exit_code"]) for record in records(experiment) if record["kind"] == "problem"]
    assert problems == [("data root", 3)]
    assert printed.count("nowhere: no such data root") == 1
    assert "data root: 1 error (" in printed
    assert "ready: exit code 3" in printed


@pytest.mark.parametrize(("missing", "parts"), [("train", ["training data"]), ("val", ["evaluation data"])])
def test_a_missing_annotation_file_is_told_once(experiment: Path, missing: str, parts: list[str]) -> None:
    (experiment.parent / "data" / f"{missing}.json").unlink()
    assert run(experiment, "--check") == 3
    assert [record["part"] for record in records(experiment) if record["kind"] == "problem"] == parts


def test_the_list_on_the_terminal_is_short_and_the_one_in_the_file_is_not(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = [
        {"id": 100 + n, "image_id": 10, "category_id": 1, "bbox": [1, 2, 0, n], "area": 1, "iscrowd": 0}
        for n in range(50)
    ]
    spoil(experiment.parent / "data" / "train.json", lambda d: d["annotations"].extend(boxes))
    assert run(experiment, "--check") == 3
    printed = capsys.readouterr().out
    assert printed.count("zero area; fix it") == 20
    assert "errors: 50\n  zero_area: 50\n" in printed
    assert "... and 30 more" in printed
    assert sum(record["kind"] == "problem" for record in records(experiment)) == 50
    assert run(experiment, "--check", settings=("data.on_bad_annotation=skip",)) == 0
    problems = [record for record in records(experiment) if record["kind"] == "problem"]
    assert [problem["severity"] for problem in problems] == ["skipped"] * 50 + ["warning"]
    assert problems[-1]["reason"] == "many_dropped"


def test_objects_that_scaling_makes_tiny_are_counted(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Boxes of 4, 8 and 18 px on images of 40 x 48, and one of 18 px on an image twice as large, at 16 x 16."""
    data = experiment.parent / "data"
    boxes = [(10, [1, 1, 4, 4]), (10, [9, 9, 4, 16]), (10, [20, 20, 18, 18]), (11, [20, 20, 18, 18])]
    entries = [
        {"id": number, "image_id": image, "category_id": 1, "bbox": box} for number, (image, box) in enumerate(boxes, 1)
    ]
    spoil(data / "train.json", lambda d: d.update(annotations=entries))
    spoil(data / "train.json", lambda d: d["images"][1].update(height=80, width=96))
    Image.new("RGB", (96, 80)).save(data / "train" / "1.png")
    assert run(experiment, "--check", settings=("data.image_size=[16, 16]",)) == 0
    printed = capsys.readouterr().out
    assert "objects scaled to data.image_size [16, 16]: 1 (25.0%) below 2 px, 3 (75.0%) below 4 px" in printed
    assert printed.count("objects scaled to data.image_size [16, 16]: ") == 2
    spoil(data / "val.json", lambda d: d.update(annotations=[]))
    assert run(experiment, "--check") == 0
    printed = capsys.readouterr().out
    assert "objects scaled to data.image_size [48, 48]: 0 (0.0%) below 2 px, 0 (0.0%) below 4 px" in printed
    assert "no object to scale" in printed


def test_faulty_categories_bring_no_further_errors(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither of their annotations, nor of the number of classes, nor of the other split."""
    spoil(experiment.parent / "data" / "train.json", lambda d: d["categories"][1].update(name="square"))
    assert run(experiment, "--check") == 3
    printed = capsys.readouterr().out
    problems = [record for record in records(experiment) if record["kind"] == "problem"]
    assert [(p["part"], p["reason"]) for p in problems if p["severity"] == "error"] == [
        ("training data", "bad_categories")
    ]
    assert "categories[1] (id 2): name 'square' appears twice, for id 1 too; make names unique" in printed


@pytest.mark.parametrize("name", [None, "square"])
def test_an_error_that_leaves_nothing_is_one_error(
    experiment: Path, capsys: pytest.CaptureFixture[str], name: str | None
) -> None:
    """The category of all objects is faulty, or the only one."""

    def change(document: dict[str, Any]) -> None:
        document["categories"][1]["name"] = name
        for entry in document["annotations"]:
            entry["category_id"] = 2
        if name is None:
            del document["categories"][0]

    spoil(experiment.parent / "data" / "train.json", change)
    assert run(experiment, "--check") == 3
    printed = capsys.readouterr().out
    assert "nothing is left without errors" in printed
    problems = [record for record in records(experiment) if record["kind"] == "problem"]
    assert [(p["part"], p["reason"]) for p in problems if p["severity"] == "error"] == [
        ("training data", "bad_categories")
    ]


def test_a_checked_folder_is_free_for_a_run_and_a_run_keeps_its_files(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = experiment.parent / "run"
    assert run(experiment, "--check") == 0
    assert [path.name for path in folder.iterdir()] == ["check.jsonl"]
    assert run(experiment, settings=("optim.epochs=1",)) == 0
    assert run(experiment, "--check") == 2
    assert "already holds a run" in capsys.readouterr().out
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "check.jsonl"}
    assert main.main(["--check-full", "--resume", str(folder / "last.pth")]) == 0
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "check.jsonl"}
    assert before == after
    assert "last.pth: epoch 1, step 2" in capsys.readouterr().out


def test_a_step_that_is_not_finite(
    experiment: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(experiment, settings=("optim.epochs=1",)) == 0
    content = torch.load(experiment.parent / "run" / "last.pth", weights_only=True)
    name = next(name for name in content["model"] if name.startswith("decoder.") and name.endswith("norm.weight"))
    content["model"][name].fill_(float("nan"))
    write_archive(experiment.parent / "nan.pth", content)
    settings = (f"init_from={experiment.parent / 'nan.pth'}", f"runtime.output_dir={experiment.parent / 'new'}")
    assert run(experiment, "--check", settings=settings) == 5
    assert "images [" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "kind", "named"),
    [
        (RuntimeError("shapes differ"), TrialError, r"images \[7\]"),
        (torch.OutOfMemoryError("of 9 GiB"), StepMemoryError, "image 7 with 2 objects"),
    ],
)
def test_a_step_that_fails_names_the_images(error: Exception, kind: type[Exception], named: str) -> None:
    class Target:
        image_id = 7
        labels = torch.zeros(2)

    class Batch:
        images = torch.zeros(1, 3, 8, 8)
        targets = (Target(),)

        def to(self, device: torch.device) -> Any:
            raise error

    with pytest.raises(kind, match=named):
        try_step(torch.nn.Linear(1, 1), None, Batch(), device=torch.device("cpu"), amp="none")  # type: ignore[arg-type]


def test_the_first_error_gives_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    preflight = Preflight(tmp_path, codes={KeyError: 4, ValueError: 2}, finding_code=3)
    for error in (KeyError("a"), ValueError("b")):
        with preflight.part("part") as part:
            part.say("looked at")
            raise error
    with pytest.raises(TypeError), preflight.part("unexpected"):
        raise TypeError
    assert preflight.failed
    assert preflight.close() == 4
    assert "not ready: exit code 4" in capsys.readouterr().out
