"""The run of all experiments: a shipped config made so small that its nine steps take a second or two."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from datasets.synthetic.scene import CountDistribution
from engine.checkpoints.checkpoint import load_checkpoint
from scripts.make_scenes import make_data_set
from tests.chaos.launch import Run

CONFIG = Path(__file__).parents[2] / "configs" / "dino_d3q_scenes.yaml"
EPOCHS, BATCHES = 3, 3
STEPS = EPOCHS * BATCHES
IMAGES = 2 * BATCHES
SETTINGS = {
    "model.backbone.name": "resnet18",
    "model.backbone.base_width": 4,
    "model.backbone.weights": "null",
    "model.hidden_dim": 16,
    "model.num_queries": 30,
    "model.neck.num_groups": 4,
    "model.encoder.ffn_dim": 32,
    "model.encoder.dropout": 0.1,
    "model.decoder.ffn_dim": 32,
    "model.decoder.dropout": 0.1,
    "model.denoising.num_queries": 4,
    "model.d3q.min_queries": 5,
    "data.image_size": "[64,64]",
    "data.worker_timeout": 60,  # a hanging worker is named before the run counts as hung
    "optim.epochs": EPOCHS,
    "optim.lr_drop_epochs": "[2]",
    "optim.warmup_steps": 4,
    "evaluation.every_epochs": 1,
    "evaluation.gallery_images": 0,
    "runtime.device": "cpu",
    "runtime.num_threads": 1,
    "runtime.log_every": 1,
}
CLOCK = ("second", "wait", "memory", "eta_")
"""Parts of the names of values that differ between any two runs"""


@dataclass
class Toy:
    """The tiny experiment: its data and run folders in one folder.

    root      gets data/ and the runs
    settings  KEY=VALUE of all runs, on top of SETTINGS
    """

    root: Path
    settings: list[str] = field(default_factory=list)
    _uninterrupted: dict[int, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with redirect_stdout(StringIO()):
            counts = CountDistribution(min_count=1, max_count=12, mu=1.0, sigma=1.0)
            images = {"train": IMAGES, "val": 3}
            make_data_set(self.root / "data", images=images, size=64, seed=0, counts=counts, workers=1)

    def folder(self, name: str) -> Path:
        """A run folder that does not exist yet."""
        folder = self.root / name
        shutil.rmtree(folder, ignore_errors=True)
        return folder

    def begin(self, folder: Path, *, ranks: int = 1, workers: int = 0) -> list[str]:
        """Arguments of main.py for a run from its beginning: the same nine steps for one process and for two."""
        settings = SETTINGS | {
            "data.root": self.root / "data",
            "data.batch_size": IMAGES // BATCHES // ranks,
            "data.num_workers": workers,
            "runtime.output_dir": folder,
        }
        return [
            "--config",
            str(CONFIG),
            "--set",
            *(f"{key}={value}" for key, value in settings.items()),
            *self.settings,
        ]

    def resume(self, folder: Path, *, ranks: int = 1, workers: int = 0) -> list[str]:
        """Arguments for a run from its last checkpoint, or from its beginning if it has none."""
        if any(folder.glob("last*.pth")):
            return ["--resume", str(folder / "last.pth")]
        return self.begin(folder, ranks=ranks, workers=workers)

    def uninterrupted(self, ranks: int = 1) -> Path:
        """The folder of an uninterrupted run of this many ranks; it is run once."""
        if ranks not in self._uninterrupted:
            folder = self.folder(f"uninterrupted_{ranks}")
            Run(self.begin(folder, ranks=ranks), log=folder.with_suffix(".txt"), ranks=ranks).expect(0)
            self._uninterrupted[ranks] = folder
        return self._uninterrupted[ranks]

    def finish(self, folder: Path, *, ranks: int = 1, workers: int = 0) -> list[str]:
        """Run to the end from the folder's state; returns the differences from the uninterrupted run."""
        arguments = self.resume(folder, ranks=ranks, workers=workers)
        run = Run(arguments, log=folder.with_suffix(".end.txt"), ranks=ranks)
        return run.problems(0) or differences(folder, self.uninterrupted(ranks))


def differences(folder: Path, other: Path) -> list[str]:
    """Names of all parts that differ between two finished runs; empty if they are bit-identical."""
    a, b = fingerprint(folder), fingerprint(other)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of each part of last.pth (without its config, which names the folder) and of the metrics log."""
    parts: dict[str, Any] = load_checkpoint(folder / "last.pth").content()
    del parts["config"]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    parts["metrics.jsonl"] = records
    return {name: _digest(value) for name, value in parts.items() if not _is_of_the_clock(name, value)}


def _is_of_the_clock(name: object, value: Any) -> bool:
    return not isinstance(value, torch.Tensor) and any(word in str(name) for word in CLOCK)


def _digest(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        content = value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return hashlib.sha256(f"{value.dtype} {tuple(value.shape)} ".encode() + content).hexdigest()
    if isinstance(value, Mapping):
        value = [(key, _digest(item)) for key, item in value.items() if not _is_of_the_clock(key, item)]
    elif isinstance(value, list | tuple):
        value = [_digest(item) for item in value]
    return hashlib.sha256(repr(value).encode()).hexdigest()
