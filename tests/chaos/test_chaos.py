"""Test the experiments of tests/chaos/experiments.py: they detect differences; and run some of them briefly."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from engine.checkpoints.checkpoint import Checkpoint, Progress, save_checkpoint, weights_checkpoint
from tests.chaos import experiments as chaos
from tests.chaos.alternation import Program, run_in_alternation, timed_part
from tests.chaos.finding import Finding
from tests.chaos.throughput import interval
from tests.chaos.toy import Toy, differences

ROOT = Path(__file__).parents[2]
RECORD = {"kind": "train", "step": 1, "loss": 0.5, "images_per_second": 3.0}


def checkpoint() -> Checkpoint:
    weights = weights_checkpoint({"weight": torch.arange(4.0)}, config="output_dir: a", categories=["a"])
    moments = {"state": {0: {"exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 0.1}]}
    return replace(weights, optimizer=moments, random_states=[torch.arange(9, dtype=torch.uint8)])


def end_of_run(folder: Path, found: Checkpoint, records: list[dict]) -> Path:
    folder.mkdir()
    save_checkpoint(folder / "last.pth", found)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def with_moment(found: Checkpoint) -> Checkpoint:
    moments = {"state": {0: {"exp_avg": torch.tensor([1.0, 1, 1, 1.0000001])}}, "param_groups": [{"lr": 0.1}]}
    return replace(found, optimizer=moments)


@pytest.mark.parametrize(
    ("change", "records", "expected"),
    [
        (lambda found: found, [RECORD], []),
        (lambda found: replace(found, config="output_dir: b"), [RECORD | {"images_per_second": 4.0}], []),
        (lambda found: replace(found, model={"weight": torch.tensor([0.0, 1, 2, 3.0000002])}), [RECORD], ["model"]),
        (lambda found: replace(found, model={"weight": torch.arange(4.0).double()}), [RECORD], ["model"]),
        (with_moment, [RECORD], ["optimizer"]),
        (lambda found: replace(found, random_states=[torch.ones(9, dtype=torch.uint8)]), [RECORD], ["random_states"]),
        (lambda found: replace(found, progress=Progress(batch=1, step=7)), [RECORD], ["progress"]),
        (lambda found: found, [RECORD, RECORD], ["metrics.jsonl"]),
        (lambda found: found, [], ["metrics.jsonl"]),
        (lambda found: found, [RECORD | {"loss": 0.25}], ["metrics.jsonl"]),
    ],
)
def test_two_ends_are_the_same_to_the_bit_but_for_the_clock(
    tmp_path: Path, change: Callable[[Checkpoint], Checkpoint], records: list[dict], expected: list[str]
) -> None:
    one = end_of_run(tmp_path / "one", checkpoint(), [RECORD])
    other = end_of_run(tmp_path / "other", change(checkpoint()), records)
    assert differences(one, other) == expected


def test_one_failed_case_fails_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(toy: Toy, options: argparse.Namespace) -> Iterator[Finding]:
        finding = Finding("made up", "a case")
        finding.add("first", [])
        finding.add("second", ["went wrong", "twice"])
        finding.note("waited", [3.0, 1.0, 2.0])
        yield finding

    monkeypatch.setattr(chaos, "EXPERIMENTS", {"made_up": SimpleNamespace(__doc__="Made up.", measure=measure)})
    assert chaos.main(["--json", str(tmp_path / "chaos.json")]) == 1
    printed = capsys.readouterr().out
    assert "made up, a case, second: went wrong; twice" in printed
    assert "| made up | a case | 1/2 | waited, median s 2.0; waited, maximum s 3.0; took, s 0 |" in printed
    (found,) = json.loads((tmp_path / "chaos.json").read_text())["findings"]
    assert (found["cases"], len(found["failures"]), found["figures"]["waited, median s"]) == (2, 1, 2.0)


def test_the_interval_holds_the_median_and_narrows() -> None:
    few, many = [0.96, 0.98, 1.0, 1.02, 1.04], [0.99, 0.995, 1.0, 1.005, 1.01] * 20
    low, high = interval(few, seed=0)
    assert low < 1.0 < high
    assert (low, high) == interval(few, seed=0)
    narrow = interval(many, seed=0)
    assert low < narrow[0] <= 1.0 <= narrow[1] < high


def test_some_kills_and_damaged_files(tmp_path: Path) -> None:
    """In a separate process, as the experiments fork."""
    json_file = tmp_path / "chaos.json"
    command = [sys.executable, "tests/chaos/experiments.py", "kill", "damage", "--moments", "2"]
    command += ["--json", str(json_file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    findings = json.loads(json_file.read_text())["findings"]
    assert [(found["experiment"], found["cases"]) for found in findings] == [
        ("kill -9", 2),
        ("damage", 1),
        ("damage", 1),
    ]
    assert findings[0]["figures"]["unreadable checkpoints"] == 0


def test_the_engine_and_the_bare_loop_end_with_the_same_weights(tmp_path: Path) -> None:
    """A brief run of the throughput experiment; its ratio means nothing at this length."""
    json_file = tmp_path / "chaos.json"
    command = [sys.executable, "tests/chaos/experiments.py", "throughput", "--turns", "1", "--steps", "2"]
    command += ["--json", str(json_file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert json_file.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    (finding,) = json.loads(json_file.read_text())["findings"]
    assert [each for each in finding["failures"] if "weights" in each] == []


def burn(seconds: float, lane: Connection) -> None:
    def work() -> None:
        start = time.process_time()
        while time.process_time() < start + seconds:
            pass

    timed_part(work, lane)


def test_alternating_programs_are_timed_separately() -> None:
    """The second one has several turns after the first one has ended."""
    (_, first), (wall, second) = run_in_alternation([Program(partial(burn, seconds)) for seconds in (0.1, 1.2)])
    assert first < 1.2 <= second
    assert wall >= 1.2


def test_a_program_that_fails_in_its_turn() -> None:
    def fail(lane: Connection) -> None:
        timed_part(lambda: os._exit(1), lane)

    waiting = Program(partial(burn, 60.0))
    with pytest.raises(EOFError):
        run_in_alternation([waiting, Program(fail)])
    waiting._process.join(20)
    assert waiting._process.exitcode == -signal.SIGKILL
