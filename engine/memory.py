"""Memory of the machine: how it is taken, and given back."""

import ctypes
import os
import resource
import sys

import torch

M_MMAP_THRESHOLD = -3
LARGE = 2 * 2**20


def tune_allocation() -> None:
    """Call before torch allocates; for large tensors on CPUs under Linux, elsewhere without effect.

    Pages of 2 MiB: on pages of 4 KiB, a quarter of the CPU time of a full-size detector goes into page faults. A
    value set in the environment stays. And glibc returns a freed tensor to the system at once, instead of keeping it
    in a heap with holes.

    Source: mallopt(3), M_MMAP_THRESHOLD.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, LARGE)


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held so far, MiB: by tensors on the GPU, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
