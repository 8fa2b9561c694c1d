"""Cached images: the same samples, no file read twice, and a clear refusal where they do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from configs.loader import load_config
from datasets.build import build_dataset, build_train_loader
from datasets.coco import CocoDetection
from datasets.images import cache as image_cache
from datasets.images.cache import ImageCache, available_bytes
from datasets.structures import Batch, DataError
from tests.support.tiny_run import write_experiment

Open = Callable[..., CocoDetection]
STATISTICS = ["data.mean=[0.5, 0.5, 0.5]", "data.std=[0.25, 0.5, 0.5]"]


def batches(config_file: Path, *settings: str, delete: bool = False) -> list[Batch]:
    """Two epochs; with `delete` the image files are gone before the first."""
    config = load_config(config_file, [*STATISTICS, *settings])
    dataset = build_dataset(config.data, training=True, seed=3)
    if delete:
        for index in range(len(dataset)):
            dataset.path(index).unlink()
    loader = build_train_loader(dataset, config.data, rank=0, world_size=1, seed=1, pin_memory=False)
    found = []
    for epoch in range(2):
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        found += list(loader)
    return found


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_are_the_same_and_files_are_read_once(tmp_path: Path, workers: int) -> None:
    config_file = write_experiment(tmp_path, train=[2, 0, 3, 1, 4], val=[1])
    plain = batches(config_file, "data.crop_size=[32, 32]")
    settings = ["data.cache_images=memory", f"data.num_workers={workers}", "data.crop_size=[32, 32]"]
    cached = batches(config_file, *settings, delete=True)
    assert len(plain) == len(cached) == 6
    for one, other in zip(plain, cached, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.padding_mask, other.padding_mask)
        for target, same in zip(one.targets, other.targets, strict=True):
            assert target.image_id == same.image_id
            assert torch.equal(target.boxes_xyxy, same.boxes_xyxy)


def test_images_of_different_sizes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([[3, 5], [7, 2], [1, 1], [40, 60]])
    images = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes.tolist()]
    cache = ImageCache(sizes=sizes, read=lambda i: images[i], threads=3)
    for index, image in enumerate(images):
        assert np.array_equal(np.asarray(cache[index]), np.asarray(image))
    cache[0].paste((0, 0, 0), (0, 0, 5, 3))
    assert np.array_equal(np.asarray(cache[0]), np.asarray(images[0]))


@pytest.mark.parametrize(("copies", "available", "fits"), [(1, 27_000, True), (1, 26_999, False), (2, 53_999, False)])
def test_what_does_not_fit_is_refused_before_decoding(
    open_dataset: Open,
    document: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    copies: int,
    available: int,
    fits: bool,
) -> None:
    dataset = open_dataset(document)  # three images of 7,200 bytes: 80 % of 27,000
    monkeypatch.setattr(image_cache, "available_bytes", lambda: available)
    if fits:
        dataset.cache_images(threads=1, copies=copies)
        return
    monkeypatch.setattr(dataset, "read_image", lambda index: pytest.fail("was decoded"))
    with pytest.raises(DataError) as caught:
        dataset.cache_images(threads=1, copies=copies)
    for word in ["instances.json", "data.cache_images: memory", "3 images", "GiB", "set data.cache_images: none"]:
        assert word in str(caught.value)
    assert ("in each of 2 processes" in str(caught.value)) == (copies == 2)


def test_a_broken_image_stops_the_run_at_once(open_dataset: Open, document: dict[str, Any]) -> None:
    dataset = open_dataset(document)
    dataset.path(1).write_bytes(b"hello")
    with pytest.raises(DataError, match=r"b\.png: is not an image.*images\[1\]"):
        dataset.cache_images(threads=2)


def test_available_memory_is_below_the_limit_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 100 kB\nMemAvailable: 50 kB\n",
        "/sys/fs/cgroup/memory.max": "40000\n",
        "/sys/fs/cgroup/memory.stat": "anon 10000\nfile 25000\n",
    }

    def read(path: Path) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", read)
    assert available_bytes() == 30_000
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert available_bytes() == 50 * 1024
    del files["/sys/fs/cgroup/memory.max"]
    assert available_bytes() == 50 * 1024
    del files["/proc/meminfo"]
    assert available_bytes() is None
