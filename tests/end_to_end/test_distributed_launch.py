"""Processes that find one another, or say why not; that hang; that are started again by torchrun."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import main
from configs.loader import load_config
from engine.checkpoints.checkpoint import load_checkpoint
from engine.commands import initial_weights
from engine.distributed.processes import (
    Processes,
    any_process,
    gather_lines,
    processes_that_differ,
    start_processes,
    stop_processes,
)
from engine.distributed.rendezvous import SHARED_STORE, Launch, StartError
from engine.distributed.watchdog import HangWatch
from models.backbones.weights import WeightsError
from tests.support.tiny_run import killed_once, write_experiment

HOST = socket.gethostname()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("launch"), train=[3, 0, 5, 2], val=[2, 0, 4])


@contextmanager
def held_port() -> Iterator[int]:
    with closing(socket.socket()) as held:
        held.bind(("", 0))
        held.listen()
        yield held.getsockname()[1]


def free_port() -> int:
    with held_port() as port:
        return port


def environment(rank: int, port: int, **more: str) -> dict[str, str]:
    """Of one of two processes on this machine."""
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return own | {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"} | more


def arguments(experiment: Path, folder: Path, *overrides: str) -> list[str]:
    return ["--config", str(experiment), "--set", f"runtime.output_dir={folder}", *overrides]


@contextmanager
def two_processes(program: str, given: list[list[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, program, *own], env=os.environ | environment(rank, port), stderr=subprocess.PIPE, text=True
        )
        for rank, own in enumerate(given)
    ]
    try:
        yield started
    finally:
        for process in started:
            process.kill()


@pytest.fixture
def first_of_two(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in environment(0, free_port()).items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_port_in_use(
    experiment: Path, tmp_path: Path, first_of_two: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with held_port() as port:
        first_of_two.setenv("MASTER_PORT", str(port))
        assert main.main(arguments(experiment, tmp_path / "run")) == 2
    assert f"error: cannot bind port {port} (" in (message := capsys.readouterr().err)
    assert "address already in use" in message


@pytest.mark.usefixtures("first_of_two")
def test_a_process_that_does_not_come(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(arguments(experiment, tmp_path / "run", "runtime.start_timeout=1")) == 2
    assert "error: of 2 processes [1] did not join localhost" in capsys.readouterr().err


def test_nobody_to_come_to(
    experiment: Path, tmp_path: Path, first_of_two: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first_of_two.setenv("RANK", "1")
    assert main.main(arguments(experiment, tmp_path / "run", "runtime.start_timeout=1")) == 2
    assert "error: no answer from localhost" in capsys.readouterr().err


def test_a_variable_that_is_missing(first_of_two: pytest.MonkeyPatch) -> None:
    first_of_two.delenv("MASTER_ADDR")
    with pytest.raises(StartError, match="'MASTER_ADDR' is not: start several processes with torchrun"):
        start_processes("cpu", start_timeout=1, hang_timeout=1)


def test_restarts_on_several_machines_need_a_store_of_their_own() -> None:
    of_torchrun = {"LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    shared = Launch.read(environment(0, free_port(), **of_torchrun))
    with pytest.raises(StartError, match=f"Set {SHARED_STORE}=1 for torchrun on every machine"):
        shared.meet(1)
    own = Launch.read(environment(0, free_port(), **of_torchrun | {"TORCHELASTIC_USE_AGENT_STORE": "False"}))
    with pytest.raises(StartError, match=r"\[1\] did not join"):
        own.meet(0.1)


def test_a_store_with_addresses_of_before_is_noticed() -> None:
    alone = {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    given = environment(0, free_port(), **alone)
    first, hosts = Launch.read(given).meet(5)
    assert hosts == (HOST,)
    with pytest.raises(StartError, match="already has a process 0"):
        Launch.read(given).meet(5)
    again, _ = Launch.read(given | {"TORCHELASTIC_RESTART_COUNT": "1"}).meet(5)  # on one machine it starts afresh
    first.set("key", "first")
    assert not again.check(["key"])


def agreement(rank: int, port: int, experiment: str, folder: str) -> None:
    os.environ.update(environment(rank, port))
    processes = start_processes("cpu", start_timeout=60, hang_timeout=60)
    answers = [processes_that_differ("a", processes), processes_that_differ(f"b{rank}", processes)]
    answers += [any_process(rank == 1, processes), any_process(False, processes)]
    answers += [gather_lines("ä" * rank + "x", processes)]
    answers += [processes.rank_here, processes.hosts]
    Path(folder, str(rank)).write_text(repr([*answers, *failed_download(experiment, processes)]))
    stop_processes()


def failed_download(experiment: str, processes: Processes) -> list[object]:
    """Downloads of this process, and how they end."""
    calls = []

    def download(*_: object, **__: object) -> str:
        calls.append("download")
        raise WeightsError("cannot fetch")

    initial_weights.load_backbone_weights = download
    config = load_config(Path(experiment), ["model.backbone.weights=IMAGENET1K_V1", "model.d3q.initial_density=0.1"])
    with pytest.raises(WeightsError) as raised:
        initial_weights.load_initial_weights(SimpleNamespace(backbone=None), config, processes)  # type: ignore[arg-type]
    return [*calls, str(raised.value)]


def test_processes_agree_on_what_they_have_and_on_what_fails(experiment: Path, tmp_path: Path) -> None:
    """The second one waits for the download of the first."""
    torch.multiprocessing.spawn(agreement, args=(free_port(), str(experiment), str(tmp_path)), nprocs=2)
    ends = [["download", "cannot fetch"], ["another process has no weights for the backbone; see its message"]]
    for rank, end in enumerate(ends):
        assert (tmp_path / str(rank)).read_text() == repr([[], [1], True, False, ["x", "äx"], rank, (HOST, HOST), *end])


def test_other_configs_are_refused_and_named(experiment: Path, tmp_path: Path) -> None:
    given = [arguments(experiment, tmp_path / "run", f"optim.lr={lr}") for lr in (1e-3, 2e-3)]
    with two_processes(main.__file__, given) as started:
        for process in started:
            _, error = process.communicate(timeout=200)
            assert process.returncode == 2
            assert f"error: process 1 on {HOST}: another config than process 0 on {HOST} has" in error
    assert not (tmp_path / "run").exists()


SLEEP = """
import sys, time
sys.path.insert(0, {root!r})
import main
from tests.support.hooks import at_step
def long_work():
    time.sleep(1000)
at_step(4, long_work, rank=1)
sys.exit(main.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["stopped", "asleep"])
def test_a_process_that_hangs_ends_the_run_and_is_named(experiment: Path, tmp_path: Path, way: str) -> None:
    folder, hook = tmp_path / "run", tmp_path / "hook.py"
    hook.write_text(SLEEP.format(root=str(Path(main.__file__).parent)))
    given = arguments(experiment, folder, "runtime.hang_timeout=10", "optim.epochs=1000", "data.batch_size=1")
    with two_processes(str(hook) if way == "asleep" else main.__file__, [given, given]) as (first, second):
        while way == "stopped" and not (folder / "metrics.jsonl").exists() and first.poll() is None:
            time.sleep(0.1)
        if way == "stopped":
            second.send_signal(signal.SIGSTOP)
        start = time.monotonic()
        _, error = first.communicate(timeout=200)
        print(f"{way}: {time.monotonic() - start:.1f} s", error[-2000:])
    assert first.returncode == 1
    last = error.strip().splitlines()[-1]
    assert last.startswith("error: no progress within 10 s (runtime.hang_timeout): process 1 on ")
    assert ("has sent no heartbeat since its step" if way == "stopped" else "is at its step 3, in long_work") in last
    assert "Traceback" not in error


@pytest.mark.slow
def test_torchrun_starts_a_killed_process_again(experiment: Path, tmp_path: Path) -> None:
    """The launcher's store still holds the addresses of the dead processes."""
    whole, folder, hook = tmp_path / "whole", tmp_path / "run", tmp_path / "hook.py"
    hook.write_text(killed_once(folder))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    for program, output in ((main.__file__, whole), (str(hook), folder)):
        command = [*launcher, "--max-restarts=3", program, *arguments(experiment, output, "data.batch_size=1")]
        command += ["--resume", "auto"]
        given = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    assert "exitcode: -9" in done.stderr  # it was started again
    expected, found = (load_checkpoint(path / "last.pth").model for path in (whole, folder))
    assert all(torch.equal(expected[name], value) for name, value in found.items())


def test_a_process_alone_is_not_watched() -> None:
    alone = start_processes("cpu", start_timeout=1, hang_timeout=1)
    with pytest.raises(RuntimeError, match="its own"), HangWatch(alone, limit=0.1):
        raise RuntimeError("its own")
