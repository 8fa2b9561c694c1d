"""Samplers: every image, the right number of times, the same everywhere."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from datasets.samplers import EvalSampler, TrainSampler, repeat_factors
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


# ---- repeat-factor sampling


def test_repeat_factors_are_those_of_lvis() -> None:
    classes = [np.array(each, np.int64) for each in ([0], [0, 0, 1], [0], [], [0, 2], [0], [0], [0])]
    # Shares of the 8 images: 7/8, 1/8, 1/8; with a threshold of 1/2 the rare ones get sqrt(4) = 2.
    np.testing.assert_allclose(repeat_factors(classes, 0.5), [1, 2, 1, 1, 2, 1, 1, 1])
    np.testing.assert_allclose(repeat_factors(classes, 0.125), np.ones(8))
    np.testing.assert_allclose(repeat_factors([np.zeros(0, np.int64)] * 3, 1.0), np.ones(3))
    np.testing.assert_allclose(repeat_factors([classes[1], classes[3]], 1.0), [np.sqrt(2), 1])  # class 2 in no image


@pytest.mark.parametrize("world_size", RANKS)
def test_repeated_images_are_seen_as_often_as_asked(world_size: int) -> None:
    repeats = np.array([1.0, 2.5, 1.2, 4.0, 1.0, 1.1])
    samplers = [
        TrainSampler(num_images=6, batch_size=2, rank=r, world_size=world_size, seed=3, repeats=repeats)
        for r in range(world_size)
    ]
    seen: Counter[int] = Counter()
    for epoch in range(400):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        batches = [list(sampler) for sampler in samplers]
        assert all(len(each) == len(sampler) for each, sampler in zip(batches, samplers, strict=True))
        keys = [key for each in batches for batch in each for key in batch]
        assert {key.index for key in keys} == set(range(6))
        if world_size == 1:
            assert len(keys) == 11 == samplers[0].epoch_images
            assert len(set(keys)) == 11  # repeats are augmented each in its own way
        seen.update(key.index for key in keys)
    if world_size == 1:
        np.testing.assert_allclose([seen[i] / 400 for i in range(6)], repeats * 11 / repeats.sum(), atol=0.1)


def test_repeats_depend_on_seed_and_epoch_and_resume_inside_one() -> None:
    def order(seed: int, epoch: int, start: int = 0) -> list[list[SampleKey]]:
        sampler = TrainSampler(num_images=9, batch_size=2, seed=seed, repeats=np.linspace(1, 3, 9))
        sampler.set_epoch(epoch, start)
        return list(sampler)

    assert order(1, 5) == order(1, 5)
    assert order(1, 5) != order(1, 6)
    assert order(1, 5) != order(2, 5)
    assert order(1, 5, 4) == order(1, 5)[4:]
