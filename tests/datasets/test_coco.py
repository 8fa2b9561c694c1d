"""CocoDetection: what training sees, what evaluation sees, and that augmentation depends on nothing else."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets.coco import CocoDetection
from datasets.collate import collate
from datasets.samplers import TrainSampler
from datasets.structures import SampleKey
from datasets.transforms import Compose, Normalize, RandomCrop, RandomFlip

Open = Callable[..., CocoDetection]


def test_labels_follow_sorted_category_ids(open_dataset: Open, document: dict[str, Any]) -> None:
    dataset = open_dataset(document)
    assert dataset.categories == ("airplane", "vehicle", "ship")
    _, target = dataset[1]
    assert target.labels.tolist() == [1]


def test_target_is_clipped_normalised_and_without_unusable_boxes(open_dataset: Open, document: dict[str, Any]) -> None:
    dataset = open_dataset(document)
    image, target = dataset[0]
    assert image.shape == (3, 40, 60)
    assert image.dtype == torch.float32
    assert (target.image_id, target.size, target.original_size) == (7, (40, 60), (40, 60))
    pixels = target.boxes * torch.tensor([60, 40, 60, 40])
    torch.testing.assert_close(pixels, torch.tensor([[3.0, 35, 6, 10], [23.0, 7.75, 5, 7]]), atol=1e-4, rtol=0)
    assert target.labels.tolist() == [0, 2]
    assert target.labels.dtype == torch.int64
    assert dataset.dropped == {"crowd": 1, "ignored": 1, "below_one_pixel": 1, "outside_image": 1}


def test_ground_truth_is_the_file(open_dataset: Open, document: dict[str, Any]) -> None:
    truth = open_dataset(document, training=False).ground_truth(0)
    assert truth.image_id == 7
    assert truth.boxes.dtype == np.float64
    assert truth.boxes.tolist()[0] == [-4, 30, 10, 20]
    assert truth.areas.tolist() == [200, 35, 2400, 4.5, 45, 45]
    assert truth.crowd.tolist() == [False, False, True, False, False, False]
    assert truth.labels.tolist() == [0, 2, 1, 1, 1, 1]
    assert open_dataset(document).ground_truth(1).areas.tolist() == [40.5]  # the file's, not w*h


def test_images_without_objects_stay_unless_dropped(open_dataset: Open, document: dict[str, Any]) -> None:
    dataset = open_dataset(document)
    assert len(dataset) == 3
    _, empty = dataset[2]
    assert empty.boxes.shape == (0, 4)
    assert dataset.ground_truth(2).boxes.shape == (0, 4)
    shorter = open_dataset(document, drop_empty=True)
    assert [shorter[i][1].image_id for i in range(len(shorter))] == [7, 3]
    with pytest.raises(ValueError, match="training only"):
        open_dataset(document, training=False, drop_empty=True)


def test_evaluation_accepts_a_file_without_annotations(open_dataset: Open, document: dict[str, Any]) -> None:
    document["annotations"] = []
    dataset = open_dataset(document, training=False)
    assert [len(dataset.ground_truth(i).labels) for i in range(3)] == [0, 0, 0]
    assert dataset.statistics().num_objects == 0


def test_zero_area_is_kept_for_evaluation(open_dataset: Open, document: dict[str, Any]) -> None:
    document["annotations"][0]["bbox"] = [10, 10, 0, 6]
    assert open_dataset(document, training=False).ground_truth(1).boxes.tolist() == [[10, 10, 0, 6]]
    skipping = open_dataset(document, on_bad_annotation="skip")
    assert skipping.skipped == {"zero_area": 1}
    assert len(skipping.ground_truth(1).boxes) == 0


def test_integral_float_ids_are_integers(open_dataset: Open, document: dict[str, Any]) -> None:
    document["annotations"][0] |= {"image_id": 3.0, "category_id": 5.0}
    assert open_dataset(document)[1][1].labels.tolist() == [1]


def test_statistics(open_dataset: Open, document: dict[str, Any]) -> None:
    statistics = open_dataset(document).statistics()
    assert (statistics.num_images, statistics.num_objects) == (3, 3)
    assert (statistics.objects_per_image_min, statistics.objects_per_image_max) == (0, 2)
    assert statistics.objects_per_image_median == 1
    assert statistics.objects_per_class == {"airplane": 1, "vehicle": 1, "ship": 1}
    sides = np.sqrt([6 * 10, 5 * 7, 8 * 6])
    assert statistics.box_size_mean == pytest.approx(sides.mean())
    assert "3 objects" in str(statistics)


def _augmented(open_dataset: Open, document: dict[str, Any], seed: int = 0) -> CocoDetection:
    normalize = Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    transforms = Compose([RandomCrop(size=(24, 24)), RandomFlip("horizontal", p=0.5), normalize])
    return open_dataset(document, transforms=transforms, seed=seed)


def test_augmentation_is_a_function_of_seed_epoch_and_image(open_dataset: Open, document: dict[str, Any]) -> None:
    dataset = _augmented(open_dataset, document)
    first = dataset[SampleKey(4, 0)][0]
    dataset[SampleKey(1, 1)]
    assert torch.equal(first, dataset[SampleKey(4, 0)][0])
    assert torch.equal(dataset[0][0], dataset[SampleKey(0, 0)][0])
    others = [dataset[SampleKey(epoch, 0)][0] for epoch in range(5, 10)]
    assert not all(torch.equal(first, other) for other in others)
    reseeded = [_augmented(open_dataset, document, seed=seed)[SampleKey(4, 0)][0] for seed in range(1, 6)]
    assert not all(torch.equal(first, other) for other in reseeded)


def test_workers_change_nothing(open_dataset: Open, document: dict[str, Any]) -> None:
    dataset = _augmented(open_dataset, document)
    runs = []
    for num_workers in (0, 2):
        sampler = TrainSampler(num_images=len(dataset), batch_size=2, seed=5)
        sampler.set_epoch(3)
        loader = DataLoader(
            dataset, batch_sampler=sampler, collate_fn=partial(collate, size_divisor=8), num_workers=num_workers
        )
        runs.append(list(loader))
    for alone, parallel in zip(*runs, strict=True):
        assert torch.equal(alone.images, parallel.images)
        assert [t.image_id for t in alone.targets] == [t.image_id for t in parallel.targets]


def test_transforms_must_end_in_a_tensor(open_dataset: Open, document: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="Normalize"):
        open_dataset(document, transforms=Compose([]))[0]


def test_files_are_found_in_subfolders(open_dataset: Open, document: dict[str, Any]) -> None:
    open_dataset(document).check_files()


def test_the_fingerprint_is_that_of_the_data(open_dataset: Open, document: dict[str, Any]) -> None:
    first = open_dataset(document).fingerprint
    assert open_dataset(document).fingerprint == first
    document["annotations"][0]["bbox"][2] += 0.001
    changed = open_dataset(document).fingerprint
    document["categories"][0]["name"] = "boat"
    assert len({first, changed, open_dataset(document).fingerprint}) == 3
