"""Loaders built from a config."""

from dataclasses import replace
from multiprocessing import get_all_start_methods
from pathlib import Path

import numpy as np
import pytest

from configs.loader import load_config
from datasets.build import build_dataset, build_eval_loader, build_train_loader, raster_options
from datasets.checks import check_images
from datasets.findings import Findings
from datasets.images import windowed
from datasets.images.rasters import RasterOptions
from datasets.images.windowed import has_rasterio
from datasets.structures import DataError, SampleKey
from tests.support.tiny_run import write_experiment

STATISTICS = ["data.mean=[0.5, 0.5, 0.5]", "data.std=[0.5, 0.5, 0.5]"]


@pytest.mark.parametrize("pinned", [True, False])
def test_loaders_pin_where_asked_and_fork_their_workers(tmp_path: Path, pinned: bool) -> None:
    config = load_config(write_experiment(tmp_path, train=[1], val=[1]), [*STATISTICS, "data.num_workers=1"])
    dataset = build_dataset(config.data, training=True, seed=0)
    train = build_train_loader(dataset, config.data, rank=0, world_size=1, seed=0, pin_memory=pinned)
    val = build_eval_loader(dataset, config.data, rank=0, world_size=1, pin_memory=pinned)
    for loader in (train, val):
        assert loader.pin_memory is pinned
        if "fork" in get_all_start_methods():
            assert loader.multiprocessing_context.get_start_method() == "fork"


def test_random_scales_and_rotations_keep_the_size_of_the_network_input(tmp_path: Path) -> None:
    settings = ["data.scale_jitter=[0.5, 2.0]", "data.image_size=[48, 48]", "data.rotate_prob=0.5"]
    config = load_config(write_experiment(tmp_path, train=[9], val=[1]), [*STATISTICS, *settings])
    dataset = build_dataset(config.data, training=True, seed=0)
    shapes = {tuple(dataset[SampleKey(epoch, 0)][0].shape[1:]) for epoch in range(40)}
    assert max(max(shape) for shape in shapes) == 48
    assert min(min(shape) for shape in shapes) < 25
    assert len(shapes) > 10
    again = [dataset[SampleKey(epoch, 0)][1].boxes_xyxy.tolist() for epoch in (3, 4)]
    assert again[0] != again[1]
    assert again == [dataset[SampleKey(epoch, 0)][1].boxes_xyxy.tolist() for epoch in (3, 4)]
    assert build_dataset(config.data, training=False, seed=0)[0][0].shape == (3, 40, 48)


@pytest.mark.skipif(not has_rasterio(), reason="the extra geo (rasterio) is not installed")
def test_bands_and_stretch_decide_on_what_is_read_trained_on_and_checked(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, train=[3], val=[1])
    plain = load_config(path, STATISTICS).data
    chosen = load_config(path, [*STATISTICS, "data.bands=[3, 2, 1]", "data.stretch=0,510"]).data
    before = np.asarray(build_dataset(plain, training=True, seed=0).read_image(0)).astype(float)
    dataset = build_dataset(chosen, training=True, seed=0)
    assert np.abs(np.asarray(dataset.read_image(0)) - before[..., ::-1] / 2).max() <= 0.5
    findings = Findings()
    check_images(dataset, chosen, findings, decode=True)
    assert not findings.messages("error")
    limited = build_dataset(replace(chosen, max_image_pixels=9), training=True, seed=0)
    with pytest.raises(DataError, match=r"40 px: more pixels than data\.max_image_pixels 9"):
        limited.read_image(0)


def test_bands_without_rasterio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(write_experiment(tmp_path, train=[3], val=[1]), [*STATISTICS, "data.stretch=percentile"])
    monkeypatch.setattr(windowed, "has_rasterio", lambda: False)
    with pytest.raises(DataError, match=r"data\.bands and data\.stretch need rasterio: pip install -e '\.\[geo\]'"):
        build_dataset(config.data, training=True, seed=0).read_image(0)


def test_a_prediction_opens_images_as_the_training_did(tmp_path: Path) -> None:
    settings = [*STATISTICS, "data.bands=[3, 2, 1]", "data.stretch=0,510", "data.exif=ignore"]
    config = load_config(write_experiment(tmp_path, train=[3], val=[1]), settings)
    assert raster_options(config.data, max_pixels=7) == RasterOptions(7, "ignore", (3, 2, 1), (0.0, 510.0))
