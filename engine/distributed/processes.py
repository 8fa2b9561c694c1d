"""The processes of a run, one or those started by torchrun, and the collectives between them."""

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
    """Step counter of this process, for the watchdog."""

    steps: int = 0
    """Steps since the start of the process"""


@dataclass(frozen=True)
class Processes:
    """This process and the process group."""

    rank: int
    world_size: int
    device: torch.device
    world_size_here: int = 1
    """Number of processes on this machine"""
    rank_here: int = 0
    """Local rank"""
    hosts: tuple[str, ...] = ()
    """Host name of each rank"""
    store: dist.Store | None = None
    """Key-value store of the process group; None for a single process"""
    pulse: Pulse = field(default_factory=Pulse)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def name(self, rank: int) -> str:
        """Name of a rank in messages."""
        return f"process {rank} on {self.hosts[rank]}"


def start_processes(device: str, *, start_timeout: float, hang_timeout: float) -> Processes:
    """Join the process group that torchrun describes in the environment; without one, a single process.

    device          auto | cpu | cuda; auto takes a GPU if one is available
    start_timeout   seconds until all ranks must have joined
    hang_timeout    seconds after which a collective times out

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
    """Leave the process group, if any."""
    if dist.is_initialized():
        dist.destroy_process_group()


def gather_rows(rows: Tensor, processes: Processes) -> Tensor:
    """All-gather: rows of all ranks, in rank order, on every rank.

    rows      (n, ...)  n may differ between ranks, the other sizes may not
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
    """All-gather: one line per rank, in rank order, on every rank; a line must not contain "\\n"."""
    content = torch.frombuffer(bytearray(f"{line}\n".encode()), dtype=torch.uint8)
    return bytes(gather_rows(content, processes).tolist()).decode().splitlines()


def any_process(here: bool, processes: Processes) -> bool:
    """Whether the flag is set on any rank. A collective call."""
    return bool(gather_rows(torch.tensor([here], dtype=torch.int64), processes).any())


def processes_that_differ(content: str, processes: Processes) -> list[int]:
    """Ranks whose content differs from rank 0's, the same list on every rank. A collective call."""
    digest = hashlib.sha256(content.encode()).digest()
    digests = gather_rows(torch.frombuffer(bytearray(digest), dtype=torch.uint8)[None], processes)
    return (digests != digests[0]).any(1).nonzero().flatten().tolist()
