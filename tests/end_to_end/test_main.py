"""Whole runs from the command line: train, evaluate, resume, two processes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import main
from configs.loader import load_config
from datasets.build import build_dataset
from engine.checkpoints.checkpoint import load_checkpoint
from engine.commands import analyze
from engine.commands.resolve import fill_input_statistics
from engine.commands.samples import write_samples
from engine.commands.train import RunEvaluator
from tests.support.tiny_run import write_experiment

ROOT = Path(main.__file__).parent
COUNTS = [3, 0, 0, 5, 2]


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    return write_experiment(tmp_path, train=COUNTS, val=[4, 0, 1, 3, 2])


def run(config: Path, output: Path, *settings: str) -> None:
    assert main.main(["--config", str(config), "--set", f"runtime.output_dir={output}", *settings]) == 0


def numbers(folder: Path) -> dict:
    record = json.loads((folder / "evaluation.json").read_text())
    return {key: record[key] for key in ("detection", "classes", "counts")}


def flat_tensors(value: object, name: str = "") -> dict[str, torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return {name: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {key: tensor for k, v in items for key, tensor in flat_tensors(v, f"{name}.{k}").items()}


def test_a_run_leaves_everything_and_its_checkpoint_gives_the_same_numbers(experiment: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(experiment, output, "evaluation.gallery_images=2")
    for name in (
        "config.yaml",
        "last.pth",
        "best.pth",
        "log.txt",
        "metrics.jsonl",
        "metrics.csv",
        "samples.jpg",
        "evaluation/gallery.png",
    ):
        assert (output / name).is_file(), name
    assert list((output / "tensorboard").iterdir())
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if record["kind"] == "train"]
    assert steps == list(range(1, 10))  # five images in batches of two, three epochs
    assert {"loss/class", "loss/encoder.giou", "loss/density", "lr/backbone", "gradient_norm"} <= set(records[0])
    assert main.main(["--eval", "--resume", str(output / "last.pth")]) == 0
    assert numbers(output / "evaluation_last") == numbers(output / "evaluation")

    analysis = json.loads((output / "evaluation" / "analysis.json").read_text())
    assert analysis["detection"] == numbers(output / "evaluation")["detection"]
    assert analysis["has_queries"]
    assert "<html" in (output / "evaluation" / "report.html").read_text()
    assert not (output / "evaluation_last" / "report.html").exists()  # of trainings only


def test_samples_are_drawn_once_and_skip_what_cannot_be_read(experiment: Path, tmp_path: Path) -> None:
    config = fill_input_statistics(load_config(experiment, ["data.rotate_prob=0.5", "data.scale_jitter=[0.5,2]"]))
    dataset = build_dataset(config.data, training=True, seed=0)
    dataset.path(0).write_bytes(b"no image")
    sheet, state = tmp_path / "samples.jpg", torch.get_rng_state()
    write_samples(dataset, config.data, sheet)
    assert torch.equal(state, torch.get_rng_state())
    with Image.open(sheet) as image:
        pixels = np.asarray(image).astype(int)
    yellow = (pixels[..., 0] > 200) & (pixels[..., 1] > 180) & (pixels[..., 2] < 90)
    assert yellow.sum() > 300  # boxes
    drawn = sheet.stat().st_mtime_ns
    write_samples(dataset, config.data, sheet)
    assert sheet.stat().st_mtime_ns == drawn


def test_a_report_that_cannot_be_written_does_not_fail_the_training(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(analyze, "analyze", broken)
    output = tmp_path / "run"
    run(experiment, output, "evaluation.report=true", "optim.epochs=1")
    said = (output / "log.txt").read_text()
    assert f"no report: disk full; to write it: python scripts/analyze.py --resume {output / 'last.pth'}" in said


@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize("workers", [0, 1])
def test_stopping_and_resuming_gives_bit_identical_weights(
    experiment: Path, tmp_path: Path, stop: int, workers: int
) -> None:
    run(experiment, tmp_path / "whole")
    run(experiment, tmp_path / "parts", f"optim.epochs={stop}", f"data.num_workers={workers}")
    last = tmp_path / "parts" / "last.pth"
    assert main.main(["--resume", str(last), "--set", "optim.epochs=3"]) == 0
    whole, parts = load_checkpoint(tmp_path / "whole" / "last.pth"), load_checkpoint(last)
    evaluations = {"seconds": 0.0, "stale": 0}  # the parts are evaluated once more, where they stop
    assert replace(whole.progress, **evaluations) == replace(parts.progress, **evaluations)
    for name in ("model", "optimizer", "random_states"):
        expected, found = flat_tensors(getattr(whole, name)), flat_tensors(getattr(parts, name))
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected), name
    first, second = (tmp_path / name / "metrics.jsonl" for name in ("whole", "parts"))
    train_steps = [
        [json.loads(line)["step"] for line in path.read_text().splitlines() if '"train"' in line]
        for path in (first, second)
    ]
    assert train_steps[0] == train_steps[1]


@pytest.mark.parametrize(("free", "enough"), [(2**20, False), (2**40, True)])
def test_training_says_beforehand_whether_the_memory_suffices(
    experiment: Path, tmp_path: Path, free: int, enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.commands.setup.available_bytes", lambda: free)
    run(experiment, tmp_path / "run", "optim.epochs=1")
    log = (tmp_path / "run" / "log.txt").read_text()
    before, _, _ = log.partition("epoch 1  step 1")
    (line,) = (line for line in before.splitlines() if "GiB are free" in line)
    assert "the densest 2 image(s) (48x40 px, up to 5 objects)" in line
    assert ("warning: not enough memory" in line) == ("runtime.recompute: layers" in line) == (not enough)


def test_a_finished_run_says_so(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(experiment, tmp_path / "run", "optim.epochs=1")
    assert main.main(["--resume", str(tmp_path / "run" / "last.pth")]) == 0
    assert "already finished" in capsys.readouterr().out


def test_a_training_ends_early_without_a_better_evaluation(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = iter([0.2, 0.3, 0.3, 0.1, 0.4, 0.1])
    monkeypatch.setattr(RunEvaluator, "__call__", lambda self, step: next(scores))
    output = tmp_path / "run"
    run(experiment, output, "optim.epochs=9", "evaluation.every_epochs=1", "optim.early_stop=2")
    assert "stopped early, after epoch 4: 2 evaluations without an AP above 0.3000" in capsys.readouterr().out
    progress = load_checkpoint(output / "last.pth").progress
    assert (progress.epoch, progress.stale, progress.best_score) == (4, 2, 0.3)
    assert load_checkpoint(output / "best.pth").progress.epoch == 2

    last = str(output / "last.pth")
    assert main.main(["--resume", last]) == 0
    said = "already finished: 2 evaluations without an AP above 0.3000; raise optim.early_stop to resume"
    assert said in capsys.readouterr().out
    assert main.main(["--resume", last, "--set", "optim.early_stop=3", "optim.epochs=6"]) == 0
    progress = load_checkpoint(output / "last.pth").progress
    assert (progress.epoch, progress.stale, progress.best_score) == (6, 1, 0.4)


@pytest.mark.parametrize("fixed", ["model.d3q=null", "model.denoising=null"])
def test_without_a_part(experiment: Path, tmp_path: Path, fixed: str) -> None:
    run(experiment, tmp_path / "run", "optim.epochs=1", fixed)
    counts = numbers(tmp_path / "run" / "evaluation")["counts"]
    assert (counts["count_MAE"] is None) == (fixed == "model.d3q=null")


def test_two_processes_train_and_evaluate_each_image_once(experiment: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", str(ROOT / "main.py")]
    arguments = ["--config", str(experiment), "--set", f"runtime.output_dir={output}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((output / "evaluation" / "evaluation.json").read_text())
    assert record["counts"]["images"] == 5
    checkpoint = load_checkpoint(output / "last.pth")
    assert len(checkpoint.random_states) == 2
    assert checkpoint.progress.step == 6  # three images per process, two per step, three epochs
    assert main.main(["--eval", "--resume", str(output / "last.pth")]) == 0
    assert numbers(output / "evaluation_last") == numbers(output / "evaluation")


def test_init_from_takes_what_fits_only_when_asked(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(experiment, tmp_path / "first", "optim.epochs=1", "model.num_queries=20")
    start = [f"init_from={tmp_path / 'first' / 'last.pth'}", "optim.epochs=1"]
    refused = ["--config", str(experiment), "--set", f"runtime.output_dir={tmp_path / 'second'}", *start]
    assert main.main([*refused, "model.encoder.ffn_dim=64"]) == 4
    assert "reset_head: true" in capsys.readouterr().err
    run(experiment, tmp_path / "second", *start, "reset_head=true", "optim.lr=1e-12", "model.encoder.ffn_dim=64")
    first, second = (load_checkpoint(tmp_path / name / "last.pth").model for name in ("first", "second"))
    assert torch.allclose(first["content_queries.weight"], second["content_queries.weight"][:20], atol=1e-6)
    assert torch.allclose(first["decoder.norm.weight"], second["decoder.norm.weight"], atol=1e-6)


@pytest.mark.parametrize(
    ("queries", "line"),
    [(30, "all 20 trained rows, 10 more at initial values"), (10, "the first 10 of 20 trained rows")],
)
def test_trained_query_rows_start_a_table_of_another_length(
    experiment: Path, tmp_path: Path, queries: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(experiment, tmp_path / "first", "optim.epochs=1", "model.num_queries=20")
    start = [f"init_from={tmp_path / 'first' / 'last.pth'}", f"model.num_queries={queries}", *STANDSTILL]
    output = [f"runtime.output_dir={tmp_path / 'second'}"]
    assert main.main(["--config", str(experiment), "--check", "--set", *start, *output]) == 0
    assert f"last.pth; content_queries.weight: {line}\n" in capsys.readouterr().out
    run(experiment, tmp_path / "second", *start)
    assert f"last.pth; content_queries.weight: {line}" in (tmp_path / "second" / "log.txt").read_text()
    first, second = (load_checkpoint(tmp_path / name / "last.pth").model for name in ("first", "second"))
    assert first.keys() == second.keys()
    for name, value in second.items():
        rows = min(len(value), len(first[name])) if name == "content_queries.weight" else None
        assert torch.allclose(first[name][:rows] if rows else first[name], value[:rows] if rows else value, atol=1e-6)
    assert len(second["content_queries.weight"]) == queries


DENSITY_BIAS = "query_budget.density_branch.output.bias"
STANDSTILL = ("optim.epochs=1", "optim.lr=1e-12")
"""A run whose last weights are its first ones."""


def initial_density(folder: Path) -> float:
    return float(load_checkpoint(folder / "last.pth").model[DENSITY_BIAS].sigmoid())


@pytest.mark.parametrize(
    ("setting", "expected"), [("null", "0.0167"), ("0.1", "0.1")]
)  # 10 objects in 5 x 10 x 12 cells
def test_a_fresh_density_map_starts_at_the_mean_of_the_data_or_at_a_given_number(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, expected: str
) -> None:
    run(experiment, tmp_path / "run", *STANDSTILL, f"model.d3q.initial_density={setting}")
    assert initial_density(tmp_path / "run") == pytest.approx(float(expected), rel=1e-3)
    assert f"from random weights; density {expected} objects per cell" in capsys.readouterr().out
    assert f"initial_density: {expected}\n" in (tmp_path / "run" / "config.yaml").read_text()


def test_a_trained_density_map_is_kept(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(experiment, tmp_path / "first", *STANDSTILL, "model.d3q.initial_density=0.3")
    run(experiment, tmp_path / "baseline", *STANDSTILL, "model.d3q=null")
    settings = (*STANDSTILL, "model.d3q.initial_density=null", "reset_head=true")
    capsys.readouterr()
    run(experiment, tmp_path / "second", *settings, f"init_from={tmp_path / 'first' / 'last.pth'}")
    assert "objects per cell" not in capsys.readouterr().out
    assert initial_density(tmp_path / "second") == pytest.approx(0.3, rel=1e-3)
    run(experiment, tmp_path / "third", *settings, f"init_from={tmp_path / 'baseline' / 'last.pth'}")
    assert "density 0.0167 objects per cell" in capsys.readouterr().out
    assert initial_density(tmp_path / "third") == pytest.approx(0.0167, rel=1e-3)
    resumed = ["--resume", str(tmp_path / "first" / "last.pth")]
    assert main.main([*resumed, "--set", "optim.epochs=2", "model.d3q.initial_density=null"]) == 0
    assert initial_density(tmp_path / "first") == pytest.approx(0.3, rel=1e-3)
