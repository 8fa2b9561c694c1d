"""Two machines, made of network namespaces: a run over both is the run of two processes on one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import main
from engine.checkpoints.checkpoint import load_checkpoint
from engine.distributed.rendezvous import SHARED_STORE
from tests.support.tiny_run import killed_once, write_experiment

PORT = 29731
SET_UP = f"""set -e
for host in 0 1; do ip netns add d3q{os.getpid()}h$host; done
ip link add v{os.getpid()}h0 netns d3q{os.getpid()}h0 type veth peer name v{os.getpid()}h1 netns d3q{os.getpid()}h1
for host in 0 1; do
    ip -n d3q{os.getpid()}h$host addr add 10.217.3.1$host/24 dev v{os.getpid()}h$host
    ip -n d3q{os.getpid()}h$host link set v{os.getpid()}h$host up
    ip -n d3q{os.getpid()}h$host link set lo up
done
"""
ADDRESSES = ("10.217.3.10", "10.217.3.11")
LAUNCHERS = {
    "c10d": (
        ["--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}", "--rdzv-id=two"],
        [[f"--rdzv-conf=is_host={host}", f"--local-addr={ADDRESSES[i]}"] for i, host in enumerate(("true", "false"))],
    ),
    "static": (
        [f"--master-addr={ADDRESSES[0]}", f"--master-port={PORT}"],
        [["--node-rank=0"], ["--node-rank=1"]],
    ),
}


@pytest.fixture(scope="module")
def hosts() -> Iterator[list[list[str]]]:
    """Per machine what to put before a command."""
    names = [f"d3q{os.getpid()}h{i}" for i in range(2)]
    try:
        made = subprocess.run(["sh", "-c", SET_UP], capture_output=True, text=True)
        if made.returncode != 0:
            pytest.skip(f"no network namespaces here: {made.stderr.strip() or made.stdout.strip()}")
        yield [["ip", "netns", "exec", name] for name in names]
    finally:
        for name in names:  # their ends of the wire go with them
            subprocess.run(["sh", "-c", f"ip netns del {name}"], capture_output=True)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_experiment(tmp_path_factory.mktemp("hosts"), train=[3, 0, 5, 2], val=[2, 0, 4])


def command(launcher: list[str], experiment: Path, folder: Path, *, program: str = main.__file__) -> list[str]:
    settings = [f"runtime.output_dir={folder}", "data.batch_size=1", "optim.epochs=2", "runtime.start_timeout=60"]
    own = [program, "--config", str(experiment), "--resume", "auto", "--set", *settings]
    return [sys.executable, "-m", "torch.distributed.run", *launcher, *own]


def start_both(
    hosts: list[list[str]], experiment: Path, folder: Path, way: str, *options: str, program: str = main.__file__
) -> list[tuple[int, str]]:
    """Starts a launcher with one process on each machine; their exit codes and error output."""
    shared, own = LAUNCHERS[way]
    started = []
    for i, prefix in enumerate(hosts):
        launcher = ["--nnodes=2", "--nproc-per-node=1", *options, *shared, *own[i]]
        environment = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"v{os.getpid()}h{i}"}
        if options and way == "c10d":
            environment[SHARED_STORE] = "1"
        given = [*prefix, *command(launcher, experiment, folder, program=program)]
        started.append(subprocess.Popen(given, env=os.environ | environment, stderr=subprocess.PIPE, text=True))
    try:
        ends = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(process.returncode, error) for process, (_, error) in zip(started, ends, strict=True)]


@pytest.fixture(scope="module")
def weights_of_one_host(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("one") / "run"
    given = command(["--standalone", "--nproc-per-node=2"], experiment, folder)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(given, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_checkpoint(folder / "last.pth").model


@pytest.mark.slow
@pytest.mark.parametrize("way", sorted(LAUNCHERS))
def test_a_run_over_two_hosts(
    hosts: list[list[str]], experiment: Path, weights_of_one_host: dict[str, torch.Tensor], tmp_path: Path, way: str
) -> None:
    """Process 0 saves what both have: the gradients of both are averaged in every step."""
    for code, error in start_both(hosts, experiment, tmp_path / "run", way):
        assert code == 0, error[-3000:]
    assert_equal_end(tmp_path / "run", weights_of_one_host)


def assert_equal_end(folder: Path, expected: dict[str, torch.Tensor]) -> None:
    found = load_checkpoint(folder / "last.pth").model
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


@pytest.mark.slow
def test_a_killed_process_is_started_again(
    hosts: list[list[str]], experiment: Path, weights_of_one_host: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    folder, hook = tmp_path / "run", tmp_path / "hook.py"
    hook.write_text(killed_once(folder))
    for code, error in start_both(hosts, experiment, folder, "c10d", "--max-restarts=3", program=str(hook)):
        assert code == 0, error[-3000:]
    assert (folder / "last.pth.killed").exists()
    assert_equal_end(folder, weights_of_one_host)


@pytest.mark.slow
def test_restarts_with_a_shared_store_are_refused(hosts: list[list[str]], experiment: Path, tmp_path: Path) -> None:
    for code, error in start_both(hosts, experiment, tmp_path / "run", "static", "--max-restarts=1"):
        assert code == 1
        assert "error: torchrun --max-restarts=1 on several machines" in error
        assert f"Set {SHARED_STORE}=1" in error
