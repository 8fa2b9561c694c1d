"""Samplers: every image, the right number of times, the same everywhere."""

from __future__ import annotations

from collections import Counter

import pytest

from datasets.samplers import EvalSampler, TrainSampler
from datasets.structures import SampleKey

SIZES = (0, 1, 2, 5, 7)
RANKS = (1, 2, 4)


@pytest.mark.parametrize("num_images", SIZES)
@pytest.mark.parametrize("world_size", RANKS)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_evaluation_sees_each_image_once_in_the_batches_of_one_process(
    num_images: int, world_size: int, batch_size: int
) -> None:
    samplers = [
        EvalSampler(num_images=num_images, batch_size=batch_size, rank=r, world_size=world_size)
        for r in range(world_size)
    ]
    batches = [batch for sampler in samplers for batch in sampler]
    assert sorted(batches) == list(EvalSampler(num_images=num_images, batch_size=batch_size))
    assert sorted(index for batch in batches for index in batch) == list(range(num_images))
    assert all(len(sampler) == len(list(sampler)) for sampler in samplers)


@pytest.mark.parametrize("num_images", [*SIZES[1:], 23])
@pytest.mark.parametrize("world_size", RANKS)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_training_ranks_agree_in_batches(num_images: int, world_size: int, batch_size: int) -> None:
    samplers = [
        TrainSampler(num_images=num_images, batch_size=batch_size, rank=r, world_size=world_size, seed=3)
        for r in range(world_size)
    ]
    epochs = []
    for sampler in samplers:
        sampler.set_epoch(2)
        epochs.append(list(sampler))
        assert len(epochs[-1]) == len(sampler)
    shapes = [[len(batch) for batch in epoch] for epoch in epochs]
    assert all(shape == shapes[0] for shape in shapes)
    seen = Counter(key.index for epoch in epochs for batch in epoch for key in batch)
    assert set(seen) == set(range(num_images))
    total = -(-num_images // world_size) * world_size
    assert sum(seen.values()) == total
    assert sum(count - 1 for count in seen.values()) == total - num_images < world_size


def test_order_is_a_function_of_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[list[SampleKey]]:
        sampler = TrainSampler(num_images=50, batch_size=4, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 5) == order(1, 5)
    assert [[key.index for key in batch] for batch in order(1, 5)] != [
        [key.index for key in batch] for batch in order(1, 6)
    ]
    assert order(1, 5) != order(2, 5)
    assert {key.epoch for batch in order(1, 5) for key in batch} == {5}


@pytest.mark.parametrize("options", [{"num_images": 0}, {"batch_size": 0}, {"rank": 2}, {"rank": -1}])
def test_impossible_settings(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"is (0|below|not in)"):
        TrainSampler(**({"num_images": 5, "batch_size": 1, "world_size": 2} | options))  # type: ignore[arg-type]


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_an_epoch_goes_on_from_any_batch(start: int) -> None:
    sampler = TrainSampler(num_images=13, batch_size=2, rank=1, world_size=2, seed=3)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.set_epoch(2, start)
    assert list(sampler) == whole[start:]
    assert len(sampler) == 4
    sampler.set_epoch(2)  # the next time from its first batch
    assert list(sampler) == whole
