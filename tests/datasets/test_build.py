"""Loaders built from a config."""

from multiprocessing import get_all_start_methods
from pathlib import Path

import pytest

from configs.loader import load_config
from datasets.build import build_dataset, build_eval_loader, build_train_loader
from datasets.structures import SampleKey
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
