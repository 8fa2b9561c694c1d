"""Processes of a run: one, or those that torchrun started."""

import hashlib
import os
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from engine.distributed.rendezvous import Launch, StartError


@dataclass
class Pulse:
    """How far this process is, for who watches it."""

    steps: int = 0
    """Since the start of the process"""


@dataclass(frozen=True)
class Processes:
    """This process among all of the run."""

    rank: int
    world_size: int
    device: torch.device
    world_size_here: int = 1
    """Processes on this machine"""
    rank_here: int = 0
    """Number of this process among those on its machine"""
    hosts: tuple[str, ...] = ()
    """Machine of every process"""
    store: dist.Store | None = None
    """What the processes tell one another without waiting; None for a process alone"""
    pulse: Pulse = field(default_factory=Pulse)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def name(self, rank: int) -> str:
        """A process as messages call it."""
        return f"process {rank} on {self.hosts[rank]}"


def start_processes(device: str, *, start_timeout: float, hang_timeout: float) -> Processes:
    """Join the group that torchrun describes in the environment; a run of its own without one.

    device          auto | cpu | cuda; auto takes a GPU where there is one
    start_timeout   seconds until all processes must be there
    hang_timeout    seconds that a process waits for the others, in any one operation

    Raises StartError, also for cuda on a machine without a GPU.
    """
    gpus = torch.cuda.device_count()
    if device == "cuda" and gpus == 0:
        raise StartError("runtime.device: cuda, but this machine shows no GPU; set it to auto or cpu")
    rank_here = int(os.environ.get("LOCAL_RANK", "0"))
    use_gpu = device != "cpu" and gpus > 0
    if use_gpu and rank_here >= gpus:
        raise StartError(f"process {rank_here} of this machine has no GPU: start at most {gpus} processes here")
    chosen = torch.device("cuda", rank_here) if use_gpu else torch.device("cpu")
    if "WORLD_SIZE" not in os.environ:
        return Processes(rank=0, world_size=1, device=chosen)
    launch = Launch.read(os.environ)
    store, hosts = launch.meet(start_timeout)
    dist.init_process_group(
        "nccl" if use_gpu else "gloo",
        store=store,
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=timedelta(seconds=hang_timeout),
        device_id=chosen if use_gpu else None,
    )
    return Processes(
        rank=launch.rank,
        world_size=launch.world_size,
        device=chosen,
        world_size_here=launch.world_size_here,
        rank_here=rank_here,
        hosts=hosts,
        store=store,
    )


def stop_processes() -> None:
    """Leave the group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def gather_rows(rows: Tensor, processes: Processes) -> Tensor:
    """Rows of all processes, in the order of the ranks, on every process.

    rows      (n, ...)  n may differ between processes, the rest may not
    returns   (N, ...)  on the CPU
    """
    if processes.world_size == 1:
        return rows.cpu()
    rows = rows.contiguous().to(processes.device)
    count = torch.tensor([len(rows)], device=processes.device)
    counts = [torch.zeros_like(count) for _ in range(processes.world_size)]
    dist.all_gather(counts, count)
    lengths = [int(c) for c in counts]
    padded = rows.new_zeros((max(lengths), *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)]).cpu()


def gather_lines(line: str, processes: Processes) -> list[str]:
    """The line of each process, in the order of the ranks, on every process; "\\n" is not in it."""
    content = torch.frombuffer(bytearray(f"{line}\n".encode()), dtype=torch.uint8)
    return bytes(gather_rows(content, processes).tolist()).decode().splitlines()


def any_process(here: bool, processes: Processes) -> bool:
    """Whether it is so in any process; all of them ask."""
    return bool(gather_rows(torch.tensor([here], dtype=torch.int64), processes).any())


def processes_that_differ(content: str, processes: Processes) -> list[int]:
    """Ranks whose content is not that of the main process; the same on every process, which all ask."""
    digest = hashlib.sha256(content.encode()).digest()
    digests = gather_rows(torch.frombuffer(bytearray(digest), dtype=torch.uint8)[None], processes)
    return (digests != digests[0]).any(1).nonzero().flatten().tolist()
