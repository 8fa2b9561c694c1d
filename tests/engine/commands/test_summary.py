"""What a run says of its pace and at its end; the same bits from run to run."""

import hashlib
import json
from pathlib import Path

import pytest
import torch

import main
from engine.checkpoints.checkpoint import Progress
from engine.commands.summary import closing_report
from engine.meter import BatchResult, Meter, duration
from engine.runtime import determinism
from tests.support.tiny_run import write_experiment


def test_the_report_at_the_end(tmp_path: Path) -> None:
    records = [
        {"kind": "train", "step": 5, "loss": 1.0},
        {"kind": "evaluation", "step": 5, "mAP": 0.25, "mAP_50": 0.5, "AR": 0.1},
        {"kind": "evaluation", "step": 9, "mAP": 0.125, "mAP_50": None, "AR": 0.1},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    for name in ("last.pth", "best.pth"):
        (tmp_path / name).touch()
    progress = Progress(epoch=2, step=9, skipped=3, replaced=4, seconds=3723.0)
    lines = closing_report(tmp_path, progress, untrained={"crowd": 5, "ignored": 2}).splitlines()
    assert lines[0] == "done: 2 epochs, 9 steps in 1:02:03"
    assert [line.split() for line in lines[1:4]] == [
        ["precision,", "%", "step", "AP", "AP50"],
        ["best", "5", "25.0", "50.0"],
        ["last", "9", "12.5", "-"],
    ]
    assert lines[4] == "skipped: 3 steps not finite, 7 annotations; replaced: 4 images that could not be read"
    assert f"python main.py --eval --resume {tmp_path / 'best.pth'}" in lines[5]
    assert f"python main.py --resume {tmp_path / 'last.pth'} --set optim.epochs=3" in lines[6]
    assert lines[7] == f"{tmp_path} holds best.pth, last.pth, metrics.jsonl"
    (tmp_path / "best.pth").unlink()
    assert "--eval" not in closing_report(tmp_path, progress, untrained={})


def test_a_meter_resumes_from_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))

    def add(meter: Meter, loss: float) -> None:
        result = BatchResult({"a": torch.tensor(loss)}, torch.tensor(loss), torch.tensor([6]), [])
        meter.add([result, result], torch.tensor(2.0))

    whole, first, second = Meter(), Meter(), Meter()
    for loss in (0.1, 0.2, 0.7):
        add(whole, loss)
    whole.skip()
    add(first, 0.1)
    second.restore(first.state(), torch.device("cpu"))
    for loss in (0.2, 0.7):
        add(second, loss)
    second.skip()
    assert second.means() == whole.means()
    assert second.means()["loss/a"] == pytest.approx(1 / 3)
    assert second.means()["skipped_steps"] == 1


def test_waiting_for_data_is_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    meter = Meter()

    def slow_items() -> object:
        for item in range(4):
            now[0] += 1.0
            yield item

    for _ in meter.waiting(slow_items()):  # type: ignore[arg-type]
        now[0] += 3.0
        meter.add([], torch.tensor(1.0))
    pace = meter.pace()
    assert pace["seconds_per_step"] == 4.0
    assert pace["data_wait_per_second"] == 0.25


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0, 59.6, 3600, 90061)] == ["0:00:00", "0:01:00", "1:00:00", "25:01:01"]


def test_deterministic_runs_have_equal_hashes(tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, train=[3, 0, 5], val=[1])
    hashes = set()
    for name in ("first", "second"):
        settings = ["runtime.deterministic=true", "optim.epochs=2", f"runtime.output_dir={tmp_path / name}"]
        assert main.main(["--config", str(experiment), "--set", *settings]) == 0
        model = torch.load(tmp_path / name / "last.pth")["model"]
        hashes.add(hashlib.sha256(b"".join(value.numpy().tobytes() for value in model.values())).hexdigest())
    assert len(hashes) == 1
    assert not torch.are_deterministic_algorithms_enabled()  # only inside


def test_an_operation_without_a_deterministic_algorithm_is_refused() -> None:
    with determinism(torch.device("cpu"), enabled=True), pytest.raises(RuntimeError, match="deterministic"):
        torch.zeros(4).put_(torch.tensor([1, 1]), torch.tensor([1.0, 2.0]))
