"""Which config changes are safe when a run resumes."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from configs.schema import Config

HARMLESS = (
    "optim.epochs",
    "optim.early_stop",
    "optim.processes",
    "data.root",  # the data are compared by digest
    "data.max_image_pixels",
    "data.follow_links",
    "data.num_workers",
    "data.worker_timeout",
    "data.cache_images",
    "evaluation.every_epochs",
    "evaluation.gallery_images",
    "evaluation.gallery_score",
    "evaluation.report",
    "runtime.device",
    "runtime.recompute",
    "runtime.num_threads",
    "runtime.log_every",
    "runtime.output_dir",
    "runtime.keep_checkpoints",
    "runtime.start_timeout",
    "runtime.hang_timeout",
)
"""Keys that may change when a run resumes: the weights of every step are those of an uninterrupted run."""


def harmful_differences(config: Config, earlier: Config) -> list[str]:
    """One line per changed key that changes the training."""
    now, before = dict(_leaves(config)), dict(_leaves(earlier))
    keys = [key for key in {**before, **now} if key not in HARMLESS]
    return [
        f"{key}: {before.get(key, 'absent')} in the checkpoint, {now.get(key, 'absent')} now"
        for key in keys
        if before.get(key, "absent") != now.get(key, "absent")
    ]


def _leaves(block: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for field in fields(block):
        value = getattr(block, field.name)
        if is_dataclass(value):
            yield from _leaves(value, f"{path}{field.name}.")
        else:
            yield f"{path}{field.name}", value
