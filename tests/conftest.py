"""Run every test with one thread: the tensors are small, and synchronising threads would cost minutes."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from configs.schema import Config
from engine.commands import setup

torch.set_num_threads(1)
LONGEST = (
    *("test_interruption.py", "test_step_memory.py", "test_cuda_faults.py", "test_main.py", "test_library_build.py"),
    *("test_gpu_day.py", "test_chaos.py", "test_sanitizers.py", "test_operator.py", "test_predict.py"),
    *("test_batch_invariance.py", "test_cuda_build.py", "test_cuda_binding.py", "test_cuda_kernels.py"),
    *("test_distributed_launch.py", "test_bad_input_table.py", "test_resume_auto.py", "test_evaluate_results.py"),
)
"""Files of more than 20 seconds, the longest first"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: scripts/test.sh hands out whole files, and at the end a long one would run alone."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


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
