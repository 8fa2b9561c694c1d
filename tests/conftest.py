"""Run every test with one thread: the tensors are small, and synchronising threads would cost minutes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from configs.schema import Config
from engine.commands import setup

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def one_estimate_per_detector() -> Iterator[None]:
    """A run begins with an estimate of its memory, which takes as long as a tiny run: it is kept for the next runs."""
    estimate, found = setup.estimate_training_step, {}

    def estimate_once(config: Config, **shapes: Any) -> object:
        runtime = replace(config.runtime, output_dir="")
        key = repr((config.model, config.criterion, config.fidelity, runtime, shapes))
        if key not in found:
            found[key] = estimate(config, **shapes)
        return found[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setup, "estimate_training_step", estimate_once)
        yield
