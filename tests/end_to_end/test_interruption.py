"""A run that a signal stops resumes to the same bits as one that was not stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import main
from engine.checkpoints.checkpoint import Checkpoint, load_checkpoint
from engine.checkpoints.run_folder import RunFolder
from engine.commands import setup, train
from engine.distributed.signals import SIGNALS
from tests.support.hooks import stop_at_step
from tests.support.tiny_run import write_experiment

STEPS = 6
"""Of the whole run: five images in batches of two, two epochs"""
AUGMENTATION = [
    "data.vertical_flip_prob=0.5",
    "data.rotate_prob=0.5",
    "data.scale_jitter=[0.6,1.6]",
    "data.crop_size=[40,40]",
    "data.brightness=0.3",
    "data.repeat_threshold=0.5",
    "data.copy_paste_prob=0.9",
    "data.copy_paste_share=1",
    "data.mosaic_prob=0.7",
    "data.keep_empty_crops=0.3",
]
"""All that there is; an epoch repeats one of the three images with objects: six images"""
SETTINGS = ["optim.epochs=2", "optim.lr_drop_epochs=[1]", "evaluation.every_epochs=1", "optim.early_stop=9"]
SETTINGS += AUGMENTATION


@pytest.fixture(scope="module", autouse=True)
def sighup_is_not_ignored() -> Iterator[None]:
    """Tests that are started with nohup inherit that SIGHUP is ignored, and so would the runs."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("data"), train=[3, 0, 0, 5, 2], val=[2, 1])


@pytest.fixture(scope="module")
def whole(experiment: Path) -> Path:
    """The folder of a run that nothing stopped."""
    folder = experiment.parent / "whole"
    assert main.main(arguments(experiment, folder)) == 0
    return folder


def arguments(experiment: Path, folder: Path, *settings: str) -> list[str]:
    return ["--config", str(experiment), "--set", f"runtime.output_dir={folder}", *SETTINGS, *settings]


def assert_same_end(folder: Path, whole: Path) -> None:
    expected, found = (state_of(load_checkpoint(path / "last.pth")) for path in (whole, folder))
    assert expected.keys() == found.keys()
    assert [name for name, value in expected.items() if not torch.equal(value, found[name])] == []
    assert records(folder) == records(whole)


def state_of(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Everything that the next step would depend on."""
    state = dict(checkpoint.model)
    for index, moments in checkpoint.optimizer["state"].items():
        state |= {f"{name} {index}": value for name, value in moments.items()}
    state |= {f"average of {name}": value for name, value in checkpoint.average.items()}
    state |= {f"sum of {name}": value for name, value in checkpoint.meter["sums"].items()}
    place = [
        *checkpoint.meter["counts"],
        checkpoint.progress.epoch,
        checkpoint.progress.batch,
        checkpoint.progress.step,
        checkpoint.progress.best_score,
        checkpoint.progress.evaluated,
    ]
    return state | {"random": torch.stack(checkpoint.random_states), "place": torch.tensor(place)}


def records(folder: Path) -> list[dict]:
    """The metrics log without time and memory."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("second", "memory")
    return [{key: record[key] for key in record if not any(word in key for word in clock)} for record in found]


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", range(1, STEPS + 1))
def test_a_run_stopped_after_any_step_resumes_to_the_same_bits(
    experiment: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, workers: int
) -> None:
    stop_at_step(stop, monkeypatch)
    folder = tmp_path / "run"
    assert main.main(arguments(experiment, folder, f"data.num_workers={workers}")) == 75
    stopped = load_checkpoint(folder / "last.pth")
    assert (stopped.progress.step, stopped.progress.epoch, stopped.progress.batch) == (stop, stop // 3, stop % 3)
    found = status(folder)
    assert [found[key] for key in ("state", "exit_code", "step")] == ["interrupted", 75, stop]
    assert main.main(["--resume", str(folder / "last.pth")]) == 0
    assert_same_end(folder, whole)
    found = status(folder)
    assert [found[key] for key in ("state", "exit_code", "step")] == ["finished", 0, STEPS]


def test_a_terminal_that_is_gone_stops_a_run_as_sigterm_does(
    experiment: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at_step(2, patch, signal.SIGHUP)
        assert main.main(arguments(experiment, folder)) == 75
    assert "stopped by SIGHUP; resume with --resume" in capsys.readouterr().err
    assert [status(folder)[key] for key in ("state", "exit_code", "step")] == ["interrupted", 75, 2]
    assert main.main(["--resume", str(folder / "last.pth")]) == 0
    assert_same_end(folder, whole)


def test_a_sighup_that_nohup_ignores_stays_ignored(
    experiment: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_at_step(2, monkeypatch, signal.SIGHUP)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main.main(arguments(experiment, tmp_path / "run")) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert_same_end(tmp_path / "run", whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_is_repeated_does_not_disturb_the_end(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The shell and the kernel both send SIGHUP when a terminal closes."""
    write_status = RunFolder._write_status

    def signalled(folder: RunFolder, state: str, code: int | None) -> None:
        if state == "interrupted":
            os.kill(os.getpid(), number)
        write_status(folder, state, code)

    monkeypatch.setattr(RunFolder, "_write_status", signalled)
    stop_at_step(2, monkeypatch, number)
    assert main.main(arguments(experiment, tmp_path / "run")) == 75
    assert [status(tmp_path / "run")[key] for key in ("state", "exit_code")] == ["interrupted", 75]


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_average_several_batches_a_step_and_records_of_several_steps_resume_as_well(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    """Five images one by one, two per step, so the third step of an epoch has one; a record of five steps."""
    settings = [
        "data.repeat_threshold=0",
        "data.batch_size=1",
        "optim.accumulate_steps=2",
        "optim.ema_decay=0.9",
        "runtime.log_every=5",
    ]
    whole, folder = tmp_path / "whole", tmp_path / "run"
    assert main.main(arguments(experiment, whole, *settings)) == 0
    stop_at_step(stop, monkeypatch)
    assert main.main(arguments(experiment, folder, *settings)) == 75
    stopped = load_checkpoint(folder / "last.pth")
    assert (stopped.progress.step, stopped.progress.epoch, stopped.progress.batch) == (stop, stop // 3, stop % 3 * 2)
    assert main.main(["--resume", str(folder / "last.pth")]) == 0
    assert_same_end(folder, whole)
    assert [record["step"] for record in records(folder) if record["kind"] == "train"] == [5]


def test_a_signal_during_the_evaluation_ends_it(
    experiment: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    evaluate = train.evaluate

    def signalled(*given: object, **options: object) -> object:
        score = evaluate(*given, **options)
        os.kill(os.getpid(), signal.SIGINT)  # its record is written, its result is not
        return score

    with monkeypatch.context() as patch:
        patch.setattr(train, "evaluate", signalled)
        assert main.main(arguments(experiment, folder)) == 75
    assert f"stopped by SIGINT; resume with --resume {folder / 'last.pth'}" in capsys.readouterr().err
    assert not load_checkpoint(folder / "last.pth").progress.evaluated
    assert main.main(["--resume", str(folder / "last.pth")]) == 0
    assert_same_end(folder, whole)


def test_a_signal_before_the_training_ends_the_run_at_once(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = setup.build_dataset

    def signalled(*given: object, **options: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        return build(*given, **options)

    monkeypatch.setattr(setup, "build_dataset", signalled)
    assert main.main(arguments(experiment, tmp_path / "run")) == 75
    assert "stopped by SIGTERM outside the training" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_handlers_are_given_back(experiment: Path, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    assert main.main(arguments(experiment, tmp_path / "run", "optim.epochs=1")) == 0
    assert [signal.getsignal(number) for number in SIGNALS] == before


def start(command: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 200
    while not (folder / "metrics.jsonl").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    return process


def command(processes: int) -> list[str]:
    launcher = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--rdzv_backend=c10d"]
    launcher += ["--rdzv_endpoint=localhost:0"]
    return [sys.executable, *(launcher if processes > 1 else []), str(Path(main.__file__))]


@pytest.mark.parametrize(("processes", "number"), [(1, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGHUP)])
def test_a_real_signal_to_everything_that_belongs_to_the_run(
    experiment: Path, tmp_path: Path, processes: int, number: signal.Signals
) -> None:
    """As a cluster stops a job, or a terminal closes: launcher, trainer and loader workers all get it."""
    folder = tmp_path / "run"
    endless = ["optim.epochs=1000", "evaluation.every_epochs=1000", "data.num_workers=2"]
    process = start([*command(processes), *arguments(experiment, folder, *endless)], folder)
    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=100)
    assert process.returncode == (75 if processes == 1 else 1), error[-2000:]  # torchrun hides the code
    found, stopped = status(folder), load_checkpoint(folder / "last.pth")
    assert [found[key] for key in ("state", "exit_code", "step")] == ["interrupted", 75, stopped.progress.step]
    assert stopped.progress.epoch * stopped.batches + stopped.progress.batch == stopped.progress.step > 0
    assert [record["step"] for record in records(folder)] == list(range(1, stopped.progress.step + 1))
    assert len(stopped.random_states) == processes


@pytest.mark.slow
@pytest.mark.parametrize(("call", "place"), [(1, (0, 2, 2)), (3, (1, 0, 3))])
def test_two_processes_stop_after_the_same_step_and_resume_to_the_same_bits(
    experiment: Path, tmp_path: Path, call: int, place: tuple[int, int, int]
) -> None:
    """Only the second one gets the signal; inside an epoch the first one knows a step later, at its end at once."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    hook = tmp_path / "hook.py"
    hook.write_text(HOOK.format(root=str(Path(main.__file__).parent), call=call))
    two = command(2)[:-1]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for program, given, code in [
        (main.__file__, arguments(experiment, whole, "data.batch_size=1"), 0),
        (str(hook), arguments(experiment, folder, "data.batch_size=1"), 1),
        (main.__file__, ["--resume", str(folder / "last.pth")], 0),
    ]:
        done = subprocess.run([*two, program, *given], env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == code, done.stderr[-2000:]
        if code == 1:
            assert status(folder)["exit_code"] == 75
            stopped = load_checkpoint(folder / "last.pth")
            assert (stopped.progress.epoch, stopped.progress.batch, stopped.progress.step) == place
    assert_same_end(folder, whole)


@pytest.mark.slow
def test_two_processes_leave_an_evaluation_together(experiment: Path, tmp_path: Path) -> None:
    """Only the second one gets the signal; both end with the code of an interruption."""
    whole, folder = tmp_path / "whole", tmp_path / "run"
    hook = tmp_path / "hook.py"
    hook.write_text(EVALUATION_HOOK.format(root=str(Path(main.__file__).parent), folder=str(tmp_path)))
    two = command(2)[:-1]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for program, given, code in [
        (main.__file__, arguments(experiment, whole), 0),
        (str(hook), arguments(experiment, folder), 1),
        (main.__file__, ["--resume", str(folder / "last.pth")], 0),
    ]:
        done = subprocess.run([*two, program, *given], env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == code, done.stderr[-2000:]
        if code == 1:
            assert [(tmp_path / f"code{rank}").read_text() for rank in (0, 1)] == ["75", "75"]
            assert not load_checkpoint(folder / "last.pth").progress.evaluated
    assert_same_end(folder, whole)


EVALUATION_HOOK = """
import os, signal, sys
sys.path.insert(0, {root!r})
import main
from tests.support.hooks import at_evaluation
at_evaluation(1, lambda: os.kill(os.getpid(), signal.SIGTERM), rank=1)
code = main.main()
open(os.path.join({folder!r}, "code" + os.environ["RANK"]), "w").write(str(code))
sys.exit(code)
"""

HOOK = """
import os, signal, sys
sys.path.insert(0, {root!r})
import main
from tests.support.hooks import at_step
at_step({call}, lambda: os.kill(os.getpid(), signal.SIGTERM), rank=1)
sys.exit(main.main())
"""


def test_a_damaged_checkpoint_costs_an_epoch_and_no_more(
    experiment: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main.main(arguments(experiment, folder)) == 0
    last, earlier = folder / "last.pth", folder / "last.1.pth"
    content = bytearray(last.read_bytes())
    content[len(content) // 3] ^= 16
    last.write_bytes(content)
    assert main.main(["--eval", "--resume", str(last)]) == 4  # never other weights than the given ones
    assert main.main(["--resume", str(last)]) == 0
    assert_same_end(folder, whole)
    log = (folder / "log.txt").read_text()
    assert log.count("warning: ") == 1
    assert f"warning: {last}: damaged (SHA-256 mismatch); take an earlier one. Resuming from {earlier}" in log


def test_inside_an_epoch_the_batches_must_be_the_same(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at_step(1, patch)
        assert main.main(arguments(experiment, folder)) == 75
    assert main.main(["--resume", str(folder / "last.pth"), "--set", "data.batch_size=1"]) == 4
    assert "inside an epoch of 3 batches, this run has 6" in capsys.readouterr().err


def test_a_folder_in_use_ends_a_run_with_the_code_of_usage(
    experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    hold = "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX); f.write('somebody'); "
    hold += "f.flush(); print('holding', flush=True); sys.stdin.read()"
    folder.mkdir()
    command = [sys.executable, "-c", hold, str(folder / "run.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert main.main(arguments(experiment, folder)) == 2
        holder.kill()
    assert f"{folder} is in use by somebody" in capsys.readouterr().err
    assert not (folder / "log.txt").exists()
