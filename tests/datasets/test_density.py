"""Mean density and densest shapes of a data set."""

from pathlib import Path

import pytest

from configs.loader import load_config
from datasets.build import build_dataset
from datasets.density import DENSITY_RANGE, densest_shapes, mean_density
from tests.support.tiny_run import write_experiment

STATISTICS = ["data.mean=[0.5, 0.5, 0.5]", "data.std=[0.5, 0.5, 0.5]"]


def density(folder: Path, counts: list[int], *settings: str, stride: int = 4) -> float:
    config = load_config(write_experiment(folder, train=counts, val=[1]), [*STATISTICS, *settings])
    return mean_density(build_dataset(config.data, training=True, seed=0), config.data, stride=stride)


@pytest.mark.parametrize(
    ("settings", "stride", "cells"),
    [
        ([], 4, 120),  # images of 40 x 48
        ([], 16, 9),  # cells that are not full count
        (["data.image_size=[96, 96]"], 4, 480),
        (["data.crop_size=[16, 16]"], 4, 120),  # its share of both
    ],
)
def test_mean_density_is_objects_per_cell_of_the_scaled_images(
    tmp_path: Path, settings: list[str], stride: int, cells: int
) -> None:
    assert density(tmp_path, [3, 0, 1, 2], *settings, stride=stride) == pytest.approx(6 / (4 * cells), rel=5e-3)


def test_mean_density_is_of_the_images_trained_on(tmp_path: Path) -> None:
    assert density(tmp_path, [6, 0, 0], "data.drop_empty=true") == pytest.approx(6 / 120)


def test_mean_density_stays_within_its_range(tmp_path: Path) -> None:
    low, high = DENSITY_RANGE
    assert density(tmp_path / "sparse", [1], "data.image_size=[960, 960]", stride=2) == low
    assert density(tmp_path / "dense", [40], stride=32) == high


@pytest.mark.parametrize(
    ("settings", "size", "counts"),
    [
        (["data.batch_size=1"], (40, 48), [9]),
        (["data.batch_size=2"], (40, 48), [9, 4]),
        (["data.batch_size=9"], (40, 48), [9, 4, 2, 0]),
        (["data.batch_size=2", "data.copy_paste_prob=0.5", "data.copy_paste_share=1"], (40, 48), [19, 14]),
        (["data.batch_size=2", "data.mosaic_prob=0.5"], (40, 48), [9, 9]),
        (["data.batch_size=1", "data.image_size=[96, 96]"], (80, 96), [9]),
        (["data.batch_size=1", "data.crop_size=[64, 32]"], (40, 32), None),
        (["data.batch_size=1", "data.rotate_prob=0.5"], (40, 48), [9]),
        (["data.batch_size=2", "data.rotate_prob=0.5"], (48, 48), [9, 4]),  # one lies, one stands
        (["data.batch_size=1", "data.image_size=[48, 48]", "data.scale_jitter=[0.5, 1.1]"], (44, 48), [9]),
        (["data.batch_size=1", "data.image_size=[48, 48]", "data.scale_jitter=[0.5, 2]"], (48, 48), [9]),
    ],
)
def test_densest_shapes(tmp_path: Path, settings: list[str], size: tuple[int, int], counts: list[int] | None) -> None:
    config = load_config(write_experiment(tmp_path, train=[2, 9, 0, 4], val=[1]), [*STATISTICS, *settings])
    dataset = build_dataset(config.data, training=True, seed=0)
    found_size, found = densest_shapes(dataset, config.data)
    assert found_size == size
    if counts is None:  # in a window of two thirds of the width, around some object
        centres = dataset.ground_truth(1).boxes[:, 0] + dataset.ground_truth(1).boxes[:, 2] / 2
        counts = [max(int((abs(centres - centre) <= 16).sum()) for centre in centres)]
        assert counts[0] < 9
    assert found == counts
