"""Kill a rank under torchrun --max-restarts, on one and two "machines": the run must end bit-identical."""

import argparse
import random
from collections.abc import Iterator
from pathlib import Path

from tests.chaos import victim
from tests.chaos.finding import Finding
from tests.chaos.launch import end_torchrun, free_port, torchrun
from tests.chaos.toy import STEPS, Toy, differences

NEW_STORES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
"""Needed with several machines: every attempt gets a new store"""


def measure(toy: Toy, options: argparse.Namespace) -> Iterator[Finding]:
    draw = random.Random(options.seed)
    for machines in (1, 2):
        finding, seconds = Finding("restart", f"{machines} machine(s), 2 processes"), []
        for _ in range(options.restarts):
            rank, step = draw.randrange(2), draw.randint(1, STEPS)
            elapsed, problems = restart(toy, machines=machines, rank=rank, step=step)
            seconds += elapsed
            finding.add(f"process {rank} killed after step {step}", problems)
        finding.note("kill to the next step", seconds)
        yield finding


def restart(toy: Toy, *, machines: int, rank: int, step: int) -> tuple[list[float], list[str]]:
    """Seconds from the kill to the next step, and problems."""
    folder, uninterrupted = toy.folder("restart"), toy.uninterrupted(2)
    mark = folder.with_suffix(".mark")
    back = mark.with_suffix(".back")
    for file in (mark, back):
        file.unlink(missing_ok=True)
    given = [str(mark), str(rank), str(step), *toy.begin(folder, ranks=2), "--resume", "auto"]
    group = ["--max_restarts=3", f"--nproc_per_node={2 // machines}", f"--nnodes={machines}"]
    group += ["--rdzv_backend=c10d", "--rdzv_id=chaos", f"--rdzv_endpoint=localhost:{free_port()}"]
    logs = [folder.with_suffix(f".{machine}.txt") for machine in range(machines)]
    environment = NEW_STORES if machines > 1 else {}
    program = Path(str(victim.__file__))
    agents = [torchrun(program, given, options=group, log=log, environment=environment) for log in logs]
    codes = [end_torchrun(agent) for agent in agents]
    if any(codes):
        return [], [f"exit codes {codes}: {logs[0].read_text()[-1500:]}"]
    if not back.exists():
        return [], ["nobody was killed"]
    return [float(back.read_text()) - float(mark.read_text())], differences(folder, uninterrupted)
