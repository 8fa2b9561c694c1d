"""Joint transforms: paint a box, transform image and box, find the box again in the pixels."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.scaling import resized_shape
from datasets.transforms import (
    ColorJitter,
    Compose,
    Normalize,
    RandomCrop,
    RandomFlip,
    RandomResize,
    RandomRotation,
    Resize,
    Sample,
    Transform,
)

SEEDS = range(25)


def _painted(rng: np.random.Generator, height: int = 60, width: int = 80, grid: int = 1) -> Sample:
    """A black image with one white box, its corners on multiples of `grid`."""
    x0, x1 = np.sort(rng.choice(np.arange(0, width + 1, grid), 2, replace=False)).tolist()
    y0, y1 = np.sort(rng.choice(np.arange(0, height + 1, grid), 2, replace=False)).tolist()
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[y0:y1, x0:x1] = 255
    return Sample(
        image=Image.fromarray(pixels),
        boxes=torch.tensor([[x0, y0, x1, y1]], dtype=torch.float32),
        labels=torch.tensor([3]),
    )


def _found(sample: Sample) -> list[int]:
    """xyxy of the pixels brighter than half."""
    rows, columns = np.nonzero(np.asarray(sample.picture)[..., 0] > 127)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "transform",
    [
        RandomFlip("horizontal", p=1.0),
        RandomFlip("vertical", p=1.0),
        RandomFlip("horizontal", p=0.5),
        Compose([RandomFlip("vertical", p=0.5), RandomFlip("horizontal", p=0.5)]),
        RandomRotation(p=1.0),
        Compose([RandomRotation(p=0.5), RandomFlip("horizontal", p=0.5)]),
    ],
)
def test_flips_and_rotations_move_the_box_with_its_pixels(transform: Transform, seed: int) -> None:
    rng = np.random.default_rng(seed)
    flipped = transform(_painted(rng), rng)
    assert flipped.boxes[0].tolist() == pytest.approx(_found(flipped), abs=1e-4)
    assert flipped.labels.tolist() == [3]


def test_flip_probability() -> None:
    rng = np.random.default_rng(0)
    sample = _painted(rng)
    flips = sum(RandomFlip("horizontal", p=0.3)(sample, rng) is not sample for _ in range(400))
    assert 80 < flips < 160
    assert RandomFlip("vertical", p=0.0)(sample, rng) is sample


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("grid", "size"), [(2, (30, 40)), (4, (15, 20)), (1, (120, 160)), (1, (240, 320))])
def test_resize_moves_the_box_with_its_pixels(seed: int, grid: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(seed)
    resized = Resize(size=size)(_painted(rng, grid=grid), rng)
    assert resized.picture.size == size[::-1]
    width, height = (resized.boxes[0, 2:] - resized.boxes[0, :2]).tolist()
    if min(width, height) > 1:  # one pixel blurs below half brightness
        assert resized.boxes[0].tolist() == pytest.approx(_found(resized), abs=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_resize_scales_boxes_per_axis(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 900, 2).tolist()
    size = tuple(rng.integers(20, 900, 2).tolist())
    boxes = np.sort(rng.uniform(0, [[width], [height]], (4, 2, 2))).transpose(0, 2, 1).reshape(4, 4)
    sample = Sample(Image.new("RGB", (width, height)), torch.tensor(boxes, dtype=torch.float32), torch.arange(4))
    resized = Resize(size=size)(sample, rng)
    new_width, new_height = resized.picture.size
    assert max(new_width, new_height) <= max(size)
    assert min(new_width, new_height) <= min(size)
    expected = boxes * np.tile([new_width / width, new_height / height], 2)
    np.testing.assert_allclose(resized.boxes.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((800, 800), (800, 800), (800, 800)),
        ((600, 1000), (800, 800), (480, 800)),
        ((1000, 600), (800, 1333), (1333, 800)),
        ((3, 1000), (100, 100), (1, 100)),  # never below one pixel
        ((333, 500), (100, 100), (67, 100)),  # int(66.6 + 0.5)
    ],
)
def test_resized_shape_is_mmcv_rescale(
    shape: tuple[int, int], size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert resized_shape(*shape, size=size) == expected


def test_resize_clips_boxes() -> None:
    sample = Sample(Image.new("RGB", (40, 20)), torch.tensor([[-5.0, -5, 50, 30]]), torch.tensor([0]))
    resized = Resize(size=(40, 80))(sample, np.random.default_rng(0))
    assert resized.boxes.tolist() == [[0, 0, 80, 40]]


@pytest.mark.parametrize("seed", SEEDS)
def test_crop_keeps_boxes_by_their_centre(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sample = _painted(rng)
    x0, y0, x1, y1 = sample.boxes[0].tolist()
    cropped = RandomCrop(size=(30, 50))(sample, np.random.default_rng(seed))
    again = np.random.default_rng(seed)
    top, left = int(again.integers(0, 31)), int(again.integers(0, 31))
    assert cropped.picture.size == (50, 30)
    inside = left <= (x0 + x1) / 2 < left + 50 and top <= (y0 + y1) / 2 < top + 30
    assert len(cropped.boxes) == len(cropped.labels) == int(inside)
    if inside:
        assert cropped.boxes[0].tolist() == pytest.approx(_found(cropped), abs=1e-4)


def test_flips_and_rotations_give_all_eight_orientations_alike() -> None:
    chain = Compose([RandomFlip("horizontal", p=0.5), RandomFlip("vertical", p=0.5), RandomRotation(p=0.5)])
    sample = Sample(Image.new("RGB", (8, 6)), torch.tensor([[1.0, 1, 3, 2]]), torch.tensor([0]))
    rng = np.random.default_rng(0)
    found = Counter((chain(sample, rng)).boxes[0].int().tolist().__repr__() for _ in range(800))
    assert len(found) == 8
    assert min(found.values()) > 60


@pytest.mark.parametrize("seed", SEEDS)
def test_random_scale_moves_the_box_with_its_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scaled = RandomResize(size=(120, 160), low=0.5, high=2.0)(_painted(rng, grid=10), rng)
    width, height = scaled.picture.size
    assert 80 <= width <= 320
    assert 60 <= height <= 240
    assert scaled.boxes[0].tolist() == pytest.approx(_found(scaled), abs=1.0)


def test_halving_is_as_likely_as_doubling() -> None:
    sample = Sample(Image.new("RGB", (40, 40)), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    scale = RandomResize(size=(40, 40), low=0.5, high=2.0)
    sides = [scale(sample, np.random.default_rng(seed)).picture.width for seed in range(400)]
    assert sum(side < 40 for side in sides) == pytest.approx(200, abs=40)
    assert min(sides) < 22
    assert max(sides) > 73


def test_crop_larger_than_the_image_is_the_image() -> None:
    sample = _painted(np.random.default_rng(1))
    cropped = RandomCrop(size=(500, 50))(sample, np.random.default_rng(0))
    assert cropped.picture.size == (50, 60)
    whole = RandomCrop(size=(500, 500))(sample, np.random.default_rng(0))
    assert torch.equal(whole.boxes, sample.boxes)


def test_crop_drops_slivers() -> None:
    boxes = torch.tensor([[10.0, 10.0, 10.6, 30.0], [10.0, 10.0, 30.0, 30.0]])
    sample = Sample(Image.new("RGB", (80, 60)), boxes, torch.tensor([0, 1]))
    assert RandomCrop(size=(60, 80))(sample, np.random.default_rng(0)).labels.tolist() == [1]


def test_transforms_accept_images_without_objects() -> None:
    sample = Sample(Image.new("RGB", (80, 60)), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    chain = Compose(
        [
            RandomCrop(size=(50, 50)),
            RandomFlip("horizontal", p=1.0),
            RandomFlip("vertical", p=1.0),
            Resize(size=(32, 32)),
            Normalize(mean=(0, 0, 0), std=(1, 1, 1)),
        ]
    )
    done = chain(sample, np.random.default_rng(0))
    assert done.boxes.shape == (0, 4)


def test_normalize() -> None:
    sample = _painted(np.random.default_rng(0))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    image = Normalize(mean=mean, std=std)(sample, np.random.default_rng(0)).image
    assert isinstance(image, torch.Tensor)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    pixels = torch.from_numpy(np.array(sample.picture)).permute(2, 0, 1)
    step_by_step = (pixels.float() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    assert torch.equal(image, step_by_step)
    expected = (np.asarray(sample.picture) / 255 - mean) / std
    np.testing.assert_allclose(image.permute(1, 2, 0).numpy(), expected, atol=1e-6)
    with pytest.raises(TypeError, match="before Normalize"):
        RandomFlip("horizontal", p=1.0)(Sample(image, sample.boxes, sample.labels), np.random.default_rng(0))


def test_color_jitter_changes_pixels_not_boxes() -> None:
    sample = Sample(Image.new("RGB", (8, 8), (100, 120, 140)), torch.zeros(0, 4), torch.zeros(0))
    levels = set()
    for seed in range(8):
        jittered = ColorJitter(strength=0.3)(sample, np.random.default_rng(seed))
        assert jittered.boxes is sample.boxes
        levels.add(jittered.picture.getpixel((0, 0)))
    assert len(levels) > 4
    still = ColorJitter(strength=0.0)(sample, np.random.default_rng(0))
    assert still.picture.getpixel((0, 0)) == (100, 120, 140)


def test_crops_without_objects_are_kept_in_part() -> None:
    """One object in a corner that a quarter of the windows reach."""
    sample = Sample(Image.new("RGB", (100, 100)), torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([1]))
    empty = {}
    for share in (1.0, 0.5, 0.0):
        crop, rng = RandomCrop(size=(96, 96), keep_empty=share), np.random.default_rng(0)
        empty[share] = sum(len(crop(sample, rng).labels) == 0 for _ in range(400)) / 400
    assert empty[1.0] == pytest.approx(16 / 25, abs=0.06)
    assert empty[0.5] == pytest.approx(8 / 25, abs=0.06)
    assert empty[0.0] <= 0.03  # eleven windows without it
    nothing = Sample(Image.new("RGB", (100, 100)), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert RandomCrop(size=(96, 96), keep_empty=0.0)(nothing, np.random.default_rng(0)).picture.size == (96, 96)
    with pytest.raises(ValueError, match="keep_empty 2"):
        RandomCrop(size=(96, 96), keep_empty=2)
