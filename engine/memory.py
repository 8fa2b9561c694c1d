"""Memory of the machine: how much is taken, and whether a training will have enough."""

import resource

import torch

FIRST_USE = 64 * 2**20
"""Bytes that kernels and thread pools take on CPUs once they first run: of a full-size detector, measured"""


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
