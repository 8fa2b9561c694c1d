"""Batch samplers for several ranks: the order of images is a function of (seed, epoch, rank) alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from datasets.structures import SampleKey


def _check_ranks(num_images: int, rank: int, world_size: int) -> None:
    if num_images < 0:
        raise ValueError(f"num_images {num_images} is negative")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not in 0..{world_size - 1} (world_size {world_size})")


class TrainSampler(Sampler[list[SampleKey]]):
    """Batch sampler for training: `DataLoader(dataset, batch_sampler=TrainSampler(...))`.

    Each epoch is one permutation from (seed, epoch). If it does not divide by world_size it wraps around:
    its first images are repeated, so every rank sees ceil(num_images / world_size) images, in batches of the same
    number and size. Apart from those repeats the ranks are disjoint, and no image is dropped. The last batch may
    be smaller. A set smaller than world_size is repeated as often as needed.

    The epoch travels inside every key, so persistent workers see it too.
    """

    def __init__(self, *, num_images: int, batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0) -> None:
        _check_ranks(num_images, rank, world_size)
        if num_images == 0:
            raise ValueError("num_images is 0: nothing to train on")
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is below 1")
        self.num_images, self.batch_size = num_images, batch_size
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.epoch = self.start_batch = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the permutation; call it before each epoch, also after a resume.

        start_batch   number of batches to skip: those that a stopped run has already trained on
        """
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        images_per_rank = -(-self.num_images // self.world_size)
        return -(-images_per_rank // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.num_images)
        images_per_rank = -(-self.num_images // self.world_size)
        order = np.resize(order, images_per_rank * self.world_size)  # wraps around
        mine = order[self.rank :: self.world_size].tolist()
        for start in range(self.start_batch * self.batch_size, len(mine), self.batch_size):
            yield [SampleKey(self.epoch, index) for index in mine[start : start + self.batch_size]]


class EvalSampler(Sampler[list[int]]):
    """Batch sampler for evaluation: each image exactly once over all ranks, nothing repeated.

    The batches are those of a single process, distributed round-robin: an image has the same batch, padding and
    rounding on any number of ranks. Ranks may differ by one batch (and a small set may give some ranks none), so a
    loop over it must not call a collective per batch.
    """

    def __init__(self, *, num_images: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        _check_ranks(num_images, rank, world_size)
        self.num_images, self.batch_size = num_images, batch_size
        self.starts = range(rank * batch_size, num_images, world_size * batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[int]]:
        return (list(range(start, min(start + self.batch_size, self.num_images))) for start in self.starts)
