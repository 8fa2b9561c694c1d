"""Loaders built from a config."""

from multiprocessing import get_all_start_methods
from pathlib import Path

import pytest

from configs.loader import load_config
from datasets.build import build_dataset, build_eval_loader, build_train_loader
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
