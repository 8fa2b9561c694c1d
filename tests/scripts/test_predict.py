"""scripts/predict.py: sources, tiles, results, bad input, several processes, killed runs."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import main
from engine.checkpoints.checkpoint import load_checkpoint, save_checkpoint, weights_checkpoint
from scripts import predict
from tests.support.tiny_run import write_experiment

ROOT = Path(__file__).parents[2]
VAL = [4, 0, 2, 3, 1]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data/ and run/last.pth of a tiny training."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_experiment(folder, train=[3, 2], val=VAL)
    settings = [f"runtime.output_dir={folder / 'run'}", "optim.epochs=1"]
    assert main.main(["--config", str(config), "--set", *settings, "evaluation.every_epochs=100"]) == 0
    return folder


def predicted(run: Path, *arguments: object, code: int = 0) -> None:
    """Run the command in this process."""
    command = ["--resume", str(run / "run" / "last.pth"), "--device", "cpu", *map(str, arguments)]
    assert predict.main(command) == code


def results(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "predictions.json").read_text())


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def picture(path: Path, width: int, height: int, *, seed: int = 0) -> Path:
    """Noise with bright squares."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 80, (height, width, 3), dtype=np.uint8)
    for _ in range(width * height // 400):
        x, y, side = int(rng.integers(0, width - 8)), int(rng.integers(0, height - 8)), int(rng.integers(4, 8))
        pixels[y : y + side, x : x + side] = 220
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_a_coco_source_gives_exactly_the_detections_of_the_evaluation(run: Path, tmp_path: Path) -> None:
    settings = ["--set", f"runtime.output_dir={tmp_path / 'evaluation'}", "evaluation.scores=corrected"]
    assert main.main(["--eval", "--dump", "--resume", str(run / "run" / "last.pth"), *settings]) == 0
    source = [run / "data" / "val.json", "--images", run / "data" / "val"]
    predicted(run, *source, "--conf", 0, "--out", tmp_path / "out")
    assert len(results(tmp_path / "out")) >= 5 * len(VAL)
    assert results(tmp_path / "out") == results(tmp_path / "evaluation")
    images = json.loads((tmp_path / "out" / "images.json").read_text())
    assert [(i["id"], i["file_name"]) for i in images["images"]] == [(10 + i, f"{i}.png") for i in range(len(VAL))]
    assert images["categories"] == [{"id": 1, "name": "square"}, {"id": 2, "name": "other"}]
    report = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    counts = [image["predicted_count"] for image in summary(tmp_path / "out")["images"]]
    errors = [abs(count - objects) for count, objects in zip(counts, VAL, strict=True)]
    assert np.mean(errors) == pytest.approx(report["counts"]["count_MAE"], rel=1e-5)


def test_tiles_of_a_large_image(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = picture(tmp_path / "large.png", 200, 130)
    predicted(run, source, "--conf", 0, "--out", tmp_path / "out", "--formats", "coco,visuals")
    (image,) = summary(tmp_path / "out")["images"]
    assert (image["num_tiles"], image["num_blank"]) == (5 * 4, 0)  # of 48 px, at least 10 px shared
    assert image["num_queries"] >= 5 * 20
    boxes = np.array([entry["bbox"] for entry in results(tmp_path / "out")])
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= [200, 130]).all()
    assert boxes[:, 0].max() > 150
    with Image.open(tmp_path / "out" / "visuals" / "large.png.jpg") as drawn:
        assert drawn.width > 800  # enlarged, and the density beside it
    printed = capsys.readouterr().out
    assert re.search(r"tiles +20\n", printed)
    assert re.search(r"detections +\d+ \((square|other) \d+", printed)


def test_blank_tiles_are_skipped(run: Path, tmp_path: Path) -> None:
    pixels = np.zeros((48, 480, 3), np.uint8)
    with Image.open(picture(tmp_path / "part.png", 100, 48)) as part:
        pixels[:, :100] = np.asarray(part)
    Image.fromarray(pixels).save(tmp_path / "frame.png")
    predicted(run, tmp_path / "frame.png", "--conf", 0, "--out", tmp_path / "out", "--formats", "coco")
    (image,) = summary(tmp_path / "out")["images"]
    assert (image["num_tiles"], image["num_blank"]) == (3, 10)
    assert max(entry["bbox"][0] for entry in results(tmp_path / "out")) < 130


@pytest.mark.parametrize(("option", "tiles"), [(("--tile", "none"), 1), (("--tile", "96"), 6), (("--scale", 0.5), 6)])
def test_tile_and_scale(run: Path, tmp_path: Path, option: tuple[object, ...], tiles: int) -> None:
    source = picture(tmp_path / "large.png", 200, 130)
    predicted(run, source, *option, "--out", tmp_path / "out", "--formats", "coco")
    assert summary(tmp_path / "out")["tiles"] == tiles


def test_folders_globs_and_lists_name_the_same_images(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("a/x.png", "a/x.jpg", "b/x.png"):
        picture(data / name, 48, 40, seed=len(name))
    (data / "notes.md").write_text("no image")
    (tmp_path / "list.txt").write_text("# images\ndata/a/x.jpg\ndata/a/x.png\n\ndata/b/x.png\n")
    sources = {"folder": data, "glob": f"{data}/**/*.*", "list": tmp_path / "list.txt", "both": data}
    for name, source in sources.items():
        more = [data / "a" / "x.png"] if name == "both" else []  # named twice, predicted once
        predicted(run, source, *more, "--conf", 0, "--out", tmp_path / name, "--formats", "csv,yolo")
    files = {"a/x.png.txt", "a/x.jpg.txt", "b/x.txt"}
    for name in sources:
        labels = tmp_path / name / "labels"
        assert {path.relative_to(labels).as_posix() for path in labels.rglob("*.txt")} == files, name
    rows = [(tmp_path / name / "predictions.csv").read_text() for name in ("folder", "glob", "both")]
    assert rows[0] == rows[1] == rows[2]


def test_a_broken_image_is_skipped_with_its_reason(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the middle of a batch and of an image of tiles; the others are as if it were not there."""
    data = tmp_path / "data"
    for number in range(4):
        picture(data / f"{number}.png", 48, 40, seed=number)
    large = picture(data / "large.png", 200, 130)
    large.write_bytes(large.read_bytes()[:5000])
    (data / "1.png").write_bytes((data / "1.png").read_bytes()[:900])
    (data / "empty.png").write_bytes(b"")
    predicted(run, data, "--conf", 0, "--out", tmp_path / "out", code=3)
    printed = capsys.readouterr().out
    assert "skipped 3 images:" in printed
    assert re.search(r"  1\.png: .*cannot decode", printed)
    assert re.search(r"  large\.png: .*cannot decode", printed)
    assert re.search(r"  empty\.png: .*is empty \(0 bytes\)", printed)
    statuses = {image["path"]: image["status"] for image in summary(tmp_path / "out")["images"]}
    assert statuses == {"0.png": "done", "1.png": "skipped", "2.png": "done", "3.png": "done"} | {
        "empty.png": "skipped",
        "large.png": "skipped",
    }
    assert {entry["image_id"] for entry in results(tmp_path / "out")} == {1, 3, 4}


def test_classes_and_conf_choose(run: Path, tmp_path: Path) -> None:
    source = run / "data" / "val"
    predicted(run, source, "--conf", 0, "--out", tmp_path / "all", "--formats", "coco")
    scores = sorted(entry["score"] for entry in results(tmp_path / "all"))
    conf = scores[len(scores) // 2]
    predicted(run, source, "--threshold", conf, "--classes", "other", "--out", tmp_path / "some", "--formats", "coco")
    expected = [e for e in results(tmp_path / "all") if e["score"] >= conf and e["category_id"] == 2]
    assert results(tmp_path / "some") == expected


def test_a_camera_rotation_is_undone(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    upright = Image.open(picture(tmp_path / "plain" / "x.png", 30, 48))
    exif = Image.Exif()
    exif[274] = 6  # turn by 90 degrees clockwise
    (tmp_path / "turned").mkdir()
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned" / "x.png", exif=exif)
    for name in ("plain", "turned"):
        predicted(run, tmp_path / name, "--conf", 0, "--out", tmp_path / f"{name}-out", "--formats", "coco")
    assert results(tmp_path / "turned-out") == results(tmp_path / "plain-out")
    assert "1 image turned as EXIF says; boxes are in the turned frame" in capsys.readouterr().out


BAD = {
    "no source": ([], 2, r"give at least one SOURCE"),
    "no such file": (["missing.png"], 3, r"missing\.png: no such image, folder or list"),
    "empty folder": (["EMPTY"], 3, r"no image in this folder or below; known are \.bmp"),
    "empty glob": (["EMPTY/*.png"], 3, r"EMPTY/\*\.png: no image matches; quote the pattern"),
    "empty list": (["EMPTY/list.txt"], 3, r"list\.txt: an empty list"),
    "list of missing": (["EMPTY/missing.txt"], 3, r"missing\.txt:2: .*nowhere\.png: no such image \(1 of 2"),
    "coco without images": (["VAL.json"], 3, r"VAL\.json: name the folder .* --images FOLDER"),
    "not coco": (["EMPTY/other.json", "--images", "EMPTY"], 3, r"other\.json: lists no images"),
    "unknown class": (["PNG", "--classes", "square,tree"], 2, r"--classes tree: .*it knows square, other"),
    "overlap": (["PNG", "--overlap", "48"], 2, r"--overlap 48 px is not below the tile's side of 48 px"),
    "negative overlap": (["PNG", "--overlap", "-1"], 2, r"--overlap -1 is below 0"),
    "tile": (["PNG", "--tile", "big"], 2, r"--tile big: give auto, none, or the side"),
    "tile and scale": (["PNG", "--tile", "50", "--scale", "2"], 2, r"--tile N and --scale exclude each other"),
    "format": (["PNG", "--formats", "coco,xml"], 2, r"--formats xml: unknown; known are coco, csv"),
    "bands": (["PNG", "--bands", "1,2"], 2, r"--bands 1,2: give three numbers"),
    "stretch": (["PNG", "--stretch", "9,1"], 2, r"--stretch 9,1: MIN must be below MAX"),
    "existing folder": (["PNG", "--out", "EMPTY"], 2, r"--out EMPTY exists; choose another name, or finish"),
    "nothing to continue": (["PNG", "--continue", "EMPTY"], 2, r"--continue EMPTY: holds no prediction"),
    "out and continue": (["PNG", "--out", "x", "--continue", "EMPTY"], 2, r"--out and --continue exclude"),
    "batch size": (["PNG", "--batch-size", "0"], 2, r"--batch-size 0 is below 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(
    run: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, code, message = BAD[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "EMPTY" / "list.txt").write_text("\n# nothing\n")
    Image.new("RGB", (48, 40)).save(tmp_path / "PNG", format="PNG")
    (tmp_path / "EMPTY" / "missing.txt").write_text("../PNG\nnowhere.png\n")
    (tmp_path / "EMPTY" / "other.json").write_text('{"images": []}')
    shutil.copy(run / "data" / "val.json", tmp_path / "VAL.json")
    predicted(run, *arguments, code=code)
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "runs").exists(), "a folder was made"


@pytest.mark.parametrize("conf", ["-0.1", "1.5", "high", "nan"])
def test_a_conf_out_of_range_is_refused(run: Path, conf: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        predicted(run, "x.png", f"--conf={conf}")
    assert stopped.value.code == 2
    assert conf in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--overlap", "0.999"], "--overlap 47.952 px is not below the tile's side of 48 px"),
        (["--overlap", "nan"], "--overlap nan"),
        (["--overlap", "inf"], "--overlap inf"),
        (["--classes", ","], "--classes names no class; the detector knows square, other"),
    ],
)
def test_more_usage(run: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    predicted(run, run / "data" / "val", *arguments, code=2)
    assert message in capsys.readouterr().err


def test_results_in_the_folder_of_the_images(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its pictures are no images to predict on, and a format that is named twice is written once."""
    picture(tmp_path / "a.png", 48, 40)
    command = (tmp_path, "--formats", "coco,visuals,coco")
    predicted(run, *command, "--out", tmp_path / "out")
    capsys.readouterr()
    predicted(run, *command, "--continue", tmp_path / "out")
    assert [image["path"] for image in summary(tmp_path / "out")["images"]] == ["a.png"]
    assert "0.00 images/s, 0.00 megapixels/s; 1 images were done before" in capsys.readouterr().out


def test_an_older_checkpoint_says_what_is_assumed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = load_checkpoint(run / "run" / "last.pth")
    assert (ours.category_ids, ours.resize_factor) == ([1, 2], 1.0)
    old = weights_checkpoint(ours.model, config=ours.config, categories=ours.categories)
    save_checkpoint(tmp_path / "old.pth", old)
    command = ["--resume", str(tmp_path / "old.pth"), str(run / "data" / "val"), "--out", str(tmp_path / "out")]
    assert predict.main(command) == 0
    printed = capsys.readouterr().out
    assert printed.count("does not say the category ids of its classes: 1 to 2 are assumed") == 1
    assert printed.count("does not say at which scale it was trained") == 1


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small images, one that is broken, and one of many tiles."""
    folder = tmp_path_factory.mktemp("mixed")
    for number in range(9):
        picture(folder / f"{number}.png", 48, 40, seed=number)
    picture(folder / "large.png", 400, 300)
    (folder / "3.png").write_bytes(b"no image")
    return folder


FILES = ("predictions.json", "predictions.csv", "images.json", "labels/5.txt")
CHOSEN = ("--conf", "0", "--formats", "coco,csv,yolo")


def process(run: Path, mixed: Path, folder: Path, *, processes: int = 1) -> list[str]:
    """The command line of a prediction."""
    start = [sys.executable]
    if processes > 1:
        start += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    tail = [str(ROOT / "scripts" / "predict.py"), "--resume", str(run / "run" / "last.pth"), str(mixed)]
    return [*start, *tail, *CHOSEN, "--device", "cpu", "--out", str(folder)]


ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def contents(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in FILES}


@pytest.fixture(scope="module")
def alone(run: Path, mixed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("alone") / "out"
    predicted(run, mixed, *CHOSEN, "--out", folder, code=3)
    return contents(folder)


def test_two_processes_give_the_bits_of_one(run: Path, mixed: Path, tmp_path: Path, alone: dict[str, str]) -> None:
    """The large image, of 99 tiles, is shared by both."""
    start = process(run, mixed, tmp_path / "out", processes=2)
    done = subprocess.run(start, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert "skipped 1 image:" in done.stdout, done.stderr
    assert len(list((tmp_path / "out" / "parts").iterdir())) == 2
    assert contents(tmp_path / "out") == alone


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 75)])
def test_a_stopped_prediction_continues_and_gives_the_same_files(
    run: Path, mixed: Path, tmp_path: Path, alone: dict[str, str], number: int, code: int
) -> None:
    folder = tmp_path / "out"
    started = subprocess.Popen(process(run, mixed, folder), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    part = folder / "parts" / "0.jsonl"
    deadline = time.monotonic() + 120
    while not (part.exists() and part.stat().st_size) and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    started.send_signal(number)
    _, errors = started.communicate(timeout=60)
    assert started.returncode == code, errors
    assert not (folder / "summary.json").exists()
    recorded = part.read_bytes()
    assert recorded
    predicted(run, mixed, *CHOSEN, "--continue", folder, code=3)
    kept = recorded[: recorded.rfind(b"\n") + 1]
    assert part.read_bytes().startswith(kept), "what was finished was predicted again"
    assert contents(folder) == alone


def test_another_prediction_is_not_continued(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = run / "data" / "val"
    predicted(run, source, *CHOSEN, "--out", tmp_path / "out")
    predicted(run, source, *CHOSEN, "--continue", tmp_path / "out", "--overlap", "0.3", code=2)
    assert "was begun with overlap 0.2, not 0.3; repeat its command" in capsys.readouterr().err
    predicted(run, run / "data" / "train", *CHOSEN, "--continue", tmp_path / "out", code=2)
    assert "was begun with sources" in capsys.readouterr().err
    ours = load_checkpoint(run / "run" / "last.pth")
    save_checkpoint(tmp_path / "other.pth", replace(ours, model={k: v + 1 for k, v in ours.model.items()}))
    command = ["--resume", str(tmp_path / "other.pth"), str(source), *CHOSEN, "--device", "cpu"]
    assert predict.main([*command, "--continue", str(tmp_path / "out")]) == 2
    assert "was begun with checkpoint" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_says_how_to_continue(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "out"
    source = run / "data" / "val"
    predicted(run, source, "--conf", 0, "--out", tmp_path / "sound", "--formats", "coco")
    predicted(run, source, "--conf", 0, "--out", folder, "--formats", "coco")
    (folder / "predictions.json").unlink()
    (folder / "predictions.json").symlink_to("/dev/full")
    predicted(run, source, "--conf", 0, "--continue", folder, "--formats", "coco", code=2)
    assert re.search(r"not written \(No space left on device\); free some space, then repeat", capsys.readouterr().err)
    (folder / "predictions.json").unlink()
    predicted(run, source, "--conf", 0, "--continue", folder, "--formats", "coco")
    assert results(folder) == results(tmp_path / "sound")
