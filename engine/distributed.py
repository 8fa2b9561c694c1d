"""Processes of a run: one, or those that torchrun started."""

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process among all of the run."""

    rank: int
    world_size: int
    device: torch.device
    world_size_here: int = 1
    """Processes on this machine"""

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def start_processes(device: str) -> Processes:
    """Join the group that torchrun describes in the environment; a run of its own without one.

    device   auto | cpu | cuda; auto takes a GPU where there is one

    Raises ValueError for cuda on a machine without a GPU.
    """
    gpus = torch.cuda.device_count()
    if device == "cuda" and gpus == 0:
        raise ValueError("runtime.device: cuda, but this machine shows no GPU; set it to auto or cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    use_gpu = device != "cpu" and gpus > 0
    if use_gpu and local_rank >= gpus:
        raise ValueError(f"process {local_rank} of this machine has no GPU: start at most {gpus} processes here")
    chosen = torch.device("cuda", local_rank) if use_gpu else torch.device("cpu")
    if "WORLD_SIZE" not in os.environ:
        return Processes(rank=0, world_size=1, device=chosen)
    dist.init_process_group("nccl" if use_gpu else "gloo", device_id=chosen if use_gpu else None)
    return Processes(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        device=chosen,
        world_size_here=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
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


def wait_for_all(processes: Processes) -> None:
    """Return once every process got here."""
    if processes.world_size > 1:
        dist.barrier()
