"""The SLURM script, with stubs of SLURM's commands and of Python."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_slurm.sh"
SRUN = """#!/bin/sh
while [ "${1#--}" != "$1" ]; do echo "$1" >> "$STUBS/srun-options"; shift; done
SLURM_NODEID=1 SLURMD_NODENAME=node2 exec "$@"
"""
SCONTROL = """#!/bin/sh
[ "$1" = requeue ] && echo "$2" > "$STUBS/requeued"
[ "$1 $2 $3" = "show hostnames node[1-2]" ] && echo node1 && sleep 0.1 && echo node2
exit 0
"""
PYTHON = """#!/bin/sh
for argument in "$@"; do echo "$argument" >> "$STUBS/python"; done
"""
UNTIL_SIGTERM = """#!/bin/sh
trap 'echo "{\\"exit_code\\": 75}" > "$STUBS/run/status.json"; exit 1' TERM
touch "$STUBS/started"
while :; do sleep 0.1; done
"""
LAUNCHER = [
    *("-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=4", "--rdzv-backend=c10d"),
    *("--rdzv-endpoint=node1:23017", "--rdzv-id=93017", "--rdzv-conf=is_host=false", "--local-addr=node2", "main.py"),
]


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Starts the script with the arguments and a program in Python's place."""

    def started(*arguments: str, python: str = PYTHON) -> subprocess.Popen[str]:
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python-stub", python)):
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        slurm = {"SLURM_JOB_ID": "93017", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
        own = {"SLURM_GPUS_ON_NODE": "4", "D3Q_PYTHON": str(tmp_path / "python-stub"), "STUBS": str(tmp_path)}
        environment = os.environ | slurm | own | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        return subprocess.Popen(["bash", str(SCRIPT), *arguments], env=environment, stderr=subprocess.PIPE, text=True)

    return started


def test_the_command_line(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "a run"
    assert start("configs/x.yaml", str(folder), "optim.lr=2e-4").wait(60) == 0
    main = ["--config", "configs/x.yaml", "--resume", "auto", "--set", f"runtime.output_dir={folder}", "optim.lr=2e-4"]
    assert (tmp_path / "python").read_text().splitlines() == [*LAUNCHER, *main]
    assert (tmp_path / "srun-options").read_text() == "--kill-on-bad-exit=1\n"
    assert not (tmp_path / "requeued").exists()


def test_a_signal_before_the_time_is_up(start: Start, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    process = start("configs/x.yaml", str(tmp_path / "run"), python=UNTIL_SIGTERM)
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 1
    assert (tmp_path / "requeued").read_text() == "93017\n"


def test_a_failure_is_not_tried_again(start: Start, tmp_path: Path) -> None:
    assert start("configs/x.yaml", str(tmp_path), python="#!/bin/sh\nexit 3\n").wait(60) == 3
    assert not (tmp_path / "requeued").exists()


def test_without_arguments(start: Start) -> None:
    process = start()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert error.startswith("usage: sbatch")
