"""Batch samplers for several ranks: the order of images is a function of (seed, epoch, rank) alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from datasets.structures import SampleKey


def _check_ranks(num_images: int, rank: int, world_size: int) -> None:
    if num_images < 0:
        raise ValueError(f"num_images {num_images} is negative")
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not in 0..{world_size - 1} (world_size {world_size})")


def repeat_factors(classes: Sequence[NDArray[np.int64]], threshold: float) -> NDArray[np.float64]:
    """How often each image is to be seen in an epoch, (I,) at least 1: images with rare classes more often.

    A class that a share f of the images has gets max(1, sqrt(threshold / f)), an image the largest of its classes.
    Source: Gupta et al., LVIS, CVPR 2019.

    classes   labels of the objects of each image
    """
    present = [np.unique(each) for each in classes]
    share = np.bincount(np.concatenate([np.zeros(0, np.int64), *present])) / max(len(present), 1)
    factors = np.maximum(1.0, np.sqrt(threshold / np.where(share > 0, share, 1.0)))
    return np.array([factors[each].max() if len(each) else 1.0 for each in present])


class TrainSampler(Sampler[list[SampleKey]]):
    """Batch sampler for training: `DataLoader(dataset, batch_sampler=TrainSampler(...))`.

    Each epoch is one permutation from (seed, epoch). If it does not divide by world_size it wraps around:
    its first images are repeated, so every rank sees ceil(num_images / world_size) images, in batches of the same
    number and size. Apart from those repeats the ranks are disjoint, and no image is dropped. The last batch may
    be smaller. A set smaller than world_size is repeated as often as needed.

    With `repeats` an epoch holds image i `repeats[i]` times on average, at least once, and has always the same length:
    the sum of the repeats, rounded up.

    The epoch travels inside every key, so persistent workers see it too.
    """

    def __init__(
        self,
        *,
        num_images: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        repeats: NDArray[np.float64] | None = None,
    ) -> None:
        _check_ranks(num_images, rank, world_size)
        if num_images == 0:
            raise ValueError("num_images is 0: nothing to train on")
        if batch_size < 1:
            raise ValueError(f"batch_size {batch_size} is below 1")
        self.num_images, self.batch_size = num_images, batch_size
        self.rank, self.world_size, self.seed = rank, world_size, seed
        self.repeats = repeats
        self.epoch_images = num_images if repeats is None else math.ceil(repeats.sum())
        """Images of an epoch, of all ranks"""
        self.epoch = self.start_batch = 0

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Choose the permutation; call it before each epoch, also after a resume.

        start_batch   number of batches to skip: those that a stopped run has already trained on
        """
        self.epoch, self.start_batch = epoch, start_batch

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        images_per_rank = -(-self.epoch_images // self.world_size)
        return -(-images_per_rank // self.batch_size)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        random = np.random.default_rng((self.seed, self.epoch))
        order = random.permutation(self.num_images)
        copies = np.zeros_like(order)
        if self.repeats is not None:
            order, copies = self._repeated(order, random)
        length = -(-self.epoch_images // self.world_size) * self.world_size
        order, copies = np.resize(order, length), np.resize(copies, length)  # wraps around
        mine = np.stack([order, copies], axis=1)[self.rank :: self.world_size].tolist()
        for start in range(self.start_batch * self.batch_size, len(mine), self.batch_size):
            yield [SampleKey(self.epoch, index, copy) for index, copy in mine[start : start + self.batch_size]]

    def _repeated(self, order: NDArray[np.int64], random: np.random.Generator) -> tuple[NDArray[np.int64], ...]:
        """Images of an epoch and the number of each among its repeats, shuffled.

        Systematic sampling: image i gets the whole numbers between two neighbouring sums, which are as many as its
        repeats on average.
        """
        assert self.repeats is not None
        wanted = self.repeats[order] * (self.epoch_images / self.repeats.sum())
        ends = np.floor(np.cumsum(wanted) + random.random()).astype(np.int64)
        ends[-1] = self.epoch_images  # whatever the rounding of the sum
        times = np.diff(ends, prepend=0)
        copies = np.arange(self.epoch_images) - np.repeat(ends - times, times)
        shuffled = random.permutation(self.epoch_images)
        return np.repeat(order, times)[shuffled], copies[shuffled]


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
