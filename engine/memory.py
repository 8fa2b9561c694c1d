"""Memory of the machine: how it is taken, and given back; and whether a training will have enough."""

import ctypes
import os
import resource
import sys

import torch

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
LARGE = 2 * 2**20
KEPT = 64 * 2**20
"""Bytes of small tensors that may stay in the process once they are freed"""
FIRST_USE = 64 * 2**20
"""Bytes that kernels and thread pools take on CPUs once they first run: of a full-size detector, measured"""


def tune_allocation() -> None:
    """Call before torch allocates; for large tensors on CPUs under Linux, elsewhere without effect.

    Pages of 2 MiB: on pages of 4 KiB, a quarter of the CPU time of a full-size detector goes into page faults. A
    value set in the environment stays. And glibc returns a freed large tensor to the system at once, instead of keeping
    it in a heap with holes, but not the small ones, which the next step takes again.

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, KEPT)


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held so far, MiB: by tensors on the GPU, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def describe_room(*, needed: int, free: int, batch: str) -> str:
    """One line on whether a training step has enough memory, and if not, what to change.

    needed   predicted bytes beyond what is taken
    free     bytes
    batch    what the step is on
    """
    sizes = f"a training step on {batch} needs about {needed / 2**30:.2f} GiB more, {free / 2**30:.2f} GiB are free"
    if needed <= free:
        return f"memory: {sizes}"
    return (
        f"warning: not enough memory: {sizes}; set runtime.recompute: layers, or lower data.batch_size, "
        "data.image_size or data.crop_size, fidelity.max_denoising_queries, or model.d3q.max_queries"
    )
