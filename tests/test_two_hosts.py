"""Two machines, made of network namespaces: a run over both is the run of two processes on one."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_run import write_experiment

import main
from engine.checkpoint import load_checkpoint

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


def command(launcher: list[str], experiment: Path, folder: Path) -> list[str]:
    settings = [f"runtime.output_dir={folder}", "data.batch_size=1", "optim.epochs=2", "runtime.start_timeout=60"]
    own = [str(Path(main.__file__)), "--config", str(experiment), "--set", *settings]
    return [sys.executable, "-m", "torch.distributed.run", *launcher, *own]


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
    shared, own = LAUNCHERS[way]
    started = []
    for i, prefix in enumerate(hosts):
        launcher = ["--nnodes=2", "--nproc-per-node=1", *shared, *own[i]]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"v{os.getpid()}h{i}"}
        given = [*prefix, *command(launcher, experiment, tmp_path / "run")]
        started.append(subprocess.Popen(given, env=environment, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error[-3000:]
    found = load_checkpoint(tmp_path / "run" / "last.pth").model
    assert all(torch.equal(value, found[name]) for name, value in weights_of_one_host.items())


@pytest.mark.slow
def test_restarts_over_two_hosts_are_refused(hosts: list[list[str]], experiment: Path, tmp_path: Path) -> None:
    shared, own = LAUNCHERS["static"]
    started = []
    for i, prefix in enumerate(hosts):
        launcher = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=1", *shared, *own[i]]
        given = [*prefix, *command(launcher, experiment, tmp_path / "run")]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        started.append(subprocess.Popen(given, env=environment, stderr=subprocess.PIPE, text=True))
    for process in started:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 1
        assert "error: torchrun --max-restarts=1 on several machines" in error
        assert "Set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in error
