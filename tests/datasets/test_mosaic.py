"""Mosaic: four windows of images at the network's scale, with the boxes of what one sees there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.coco import CocoDetection
from datasets.mosaic import LEAST, Mosaic
from datasets.structures import DataError, SampleKey
from datasets.transforms import Sample

SIZE = (60, 80)
KEY = SampleKey(0, 0)


def _filled(colour: int, *, width: int, height: int) -> Sample:
    """One object per 10 x 10 px cell, whose label is the image's colour."""
    corners = torch.tensor([[x, y] for y in range(0, height, 10) for x in range(0, width, 10)], dtype=torch.float32)
    boxes = torch.cat([corners + 2, corners + 8], dim=1)
    labels = torch.full((len(boxes),), colour, dtype=torch.int64)
    return Sample(Image.new("RGB", (width, height), (colour,) * 3), boxes, labels)


def _mosaic(load: Callable[[int], Sample], **options: Any) -> Mosaic:
    return Mosaic(**{"p": 1.0, "size": SIZE, "images": 3, "load": load, "epochs": None, **options})


@pytest.mark.parametrize("seed", range(25))
def test_objects_lie_in_windows_of_their_image(seed: int) -> None:
    mosaic = _mosaic(lambda index: _filled(100 + index, width=80, height=60))
    found = mosaic(_filled(50, width=80, height=60), KEY, np.random.default_rng(seed))
    pixels = np.array(found.picture)[..., 0]
    assert found.picture.size == (80, 60)
    colours = set(np.unique(pixels).tolist())
    assert 50 in colours
    assert colours <= {50, 100, 101, 102}
    assert set(found.labels.tolist()) <= colours
    for box, label in zip(found.boxes.int().tolist(), found.labels.tolist(), strict=True):
        x0, y0, x1, y1 = box
        assert (pixels[y0:y1, x0:x1] == label).all()
    # Objects of 6 px every 10 px: about one per cell of 100 px, wherever the windows are.
    assert 30 <= len(found.labels) <= 60


def test_quarters_are_not_slivers() -> None:
    mosaic = _mosaic(lambda index: _filled(100, width=80, height=60))
    for seed in range(50):
        found = mosaic(_filled(50, width=80, height=60), KEY, np.random.default_rng(seed))
        share = (np.array(found.picture)[..., 0] == 50).mean()
        assert LEAST**2 * 0.9 <= share <= (1 - LEAST) ** 2 * 1.1


def test_images_have_the_scale_of_a_training_by_themselves() -> None:
    """One of twice the size is halved, and its objects with it; a smaller one leaves black."""
    large, small = _filled(100, width=160, height=120), _filled(100, width=16, height=60)
    found = _mosaic(lambda index: large)(_filled(50, width=80, height=60), KEY, np.random.default_rng(0))
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    assert sides[found.labels == 100].max() == 3
    found = _mosaic(lambda index: small)(_filled(50, width=80, height=60), KEY, np.random.default_rng(0))
    assert (np.array(found.picture) == 0).any()


def test_epochs_and_probability() -> None:
    sample = _filled(50, width=80, height=60)
    mosaic = _mosaic(lambda index: _filled(100, width=80, height=60), epochs=2)
    changed = [mosaic(sample, SampleKey(epoch, 0), np.random.default_rng(1)) is not sample for epoch in range(4)]
    assert changed == [True, True, False, False]
    never = _mosaic(lambda index: sample, p=0.0)
    assert never(sample, KEY, np.random.default_rng(1)) is sample


def test_an_image_is_a_function_of_seed_epoch_and_copy(
    open_dataset: Callable[..., CocoDetection], document: dict[str, Any]
) -> None:
    keys = [SampleKey(epoch, index, copy) for epoch in range(4) for index in range(3) for copy in range(2)]
    samples = []
    for order in (keys, keys[::-1]):
        dataset = open_dataset(document)
        dataset.mixers = (_mosaic(dataset.read_sample, p=0.5, images=len(dataset)),)
        samples.append({key: dataset[key] for key in order})
    for key in keys:
        (image, target), (image_again, target_again) = samples[0][key], samples[1][key]
        assert torch.equal(image, image_again)
        assert torch.equal(target.boxes_xyxy, target_again.boxes_xyxy)
    assert len({tuple(samples[0][key][0].flatten()[::97].tolist()) for key in keys}) > 3


def test_an_unreadable_image_is_named(open_dataset: Callable[..., CocoDetection], document: dict[str, Any]) -> None:
    dataset = open_dataset(document)
    dataset.mixers = (_mosaic(dataset.read_sample, images=len(dataset)),)
    dataset.path(0).write_bytes(b"no image")
    with pytest.raises(DataError, match=str(dataset.path(0))):
        [dataset[SampleKey(epoch, 1)] for epoch in range(20)]
