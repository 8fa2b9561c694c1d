"""Errors of a training step: a loss or gradient that is not finite, or out of memory."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from datasets.structures import Batch
from engine.distributed.processes import Processes, gather_rows
from engine.meter import BatchResult

SHOWN = 20
"""Images named in a message"""
REMEDIES = (
    "Set runtime.recompute: layers, a smaller data.batch_size with optim.accumulate_steps, data.crop_size, a limit in "
    "fidelity.max_denoising_queries, or a lower model.d3q.max_queries; then resume from the last checkpoint"
)


class NonFiniteLossError(ArithmeticError):
    """Training has diverged: too many steps in a row were not finite."""


class StepMemoryError(Exception):
    """Out of memory in a training step."""


def images_of(taken: Sequence[Batch], results: Sequence[BatchResult], processes: Processes) -> str:
    """Images of all ranks whose loss is not finite, or all images of the step if none is found. A collective call.

    taken     batches of this rank
    results   of the first of these batches; a missing one had predictions that were not finite
    """
    totals = torch.stack([result.total for result in results]).isfinite().tolist() if results else []
    good = [totals[i] if i < len(totals) else i > len(totals) for i in range(len(taken))]
    rows = [[target.image_id, is_good] for batch, is_good in zip(taken, good, strict=True) for target in batch.targets]
    found = gather_rows(torch.tensor(rows, dtype=torch.int64).view(-1, 2), processes)
    bad = found[found[:, 1] == 0]
    ids = (bad if len(bad) else found)[:, 0].tolist()
    return f"images {ids[:SHOWN]}" + (f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else "")


@contextmanager
def memory_explained(batch: Batch) -> Iterator[list[Tensor]]:
    """Turn an out-of-memory error inside into a StepMemoryError; append the query counts to the list once known."""
    num_queries: list[Tensor] = []
    try:
        yield num_queries
    except (
        MemoryError,
        RuntimeError,
    ) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_out_of_memory(error):
            raise
        images = [(target.image_id, len(target.labels)) for target in batch.targets]
        height, width = batch.images.shape[-2:]
        queries = "".join(f", {int(count.max())} queries" for count in num_queries)
        raise StepMemoryError(
            f"out of memory in a training step: {len(images)} images of {height} x {width} px{queries}, "
            f"{', '.join(f'image {image} with {objects} objects' for image, objects in images[:SHOWN])}; "
            f"{(str(error) or 'MemoryError').splitlines()[0]}. {REMEDIES}"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is out of memory: on a GPU, of torch on a CPU, or of Python."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)
