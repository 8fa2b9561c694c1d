"""Prediction on a user's own images with a checkpoint: `scripts/predict.py` and `hubconf.py` call it."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from configs.schema import Config
from datasets.build import build_eval_transforms
from datasets.collate import collate
from datasets.structures import Target
from datasets.transforms import Compose, Sample
from engine.checkpoints.checkpoint import Checkpoint, CheckpointError, load_checkpoint, load_weights
from engine.commands.resolve import read_checkpoint
from engine.commands.setup import start_runtime
from engine.distributed.processes import Processes
from engine.evaluation.evaluate import ImagePrediction, predict_batches
from engine.runtime import accelerate
from models.build import build_detector, build_postprocess
from models.postprocess import PostProcess
from ops import tune_allocation


@dataclass(frozen=True)
class Predictor:
    """A trained detector on its device, and what it takes to give it images."""

    detector: nn.Module
    postprocess: PostProcess
    transforms: Compose
    """Those of an evaluation"""
    config: Config
    processes: Processes
    class_names: list[str]
    category_ids: list[int]
    """Of the annotation file that it was trained on"""
    resize_factor: float
    """Network pixels per pixel of the image file, in training"""
    remarks: tuple[str, ...]
    """What an older checkpoint does not say, and what is assumed"""

    def detect(self, images: Sequence[Image.Image]) -> list[ImagePrediction]:
        """Predictions of RGB images in one batch; boxes in px of each image."""
        samples = [self._prepare(image) for image in images]
        ((predictions, _),) = predict_batches(
            self.detector,
            self.postprocess,
            [collate(samples)],
            device=self.processes.device,
            amp=self.config.runtime.amp,
        )
        return predictions

    def tile_size(self, scale: float = 1.0) -> tuple[int, int]:
        """(width, height) px of the source image that the network sees at the resolution of its training.

        scale   network pixels per source pixel, as a multiple of the training's
        """
        height, width = self.config.data.image_size
        factor = self.resize_factor * scale
        return max(round(width / factor), 1), max(round(height / factor), 1)

    def _prepare(self, image: Image.Image) -> tuple[Tensor, Target]:
        sample = Sample(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        pixels = self.transforms(sample, np.random.default_rng(0)).image
        assert isinstance(pixels, Tensor)
        height, width = pixels.shape[-2:]
        target = Target(sample.boxes, sample.labels, 0, size=(height, width), original_size=(image.height, image.width))
        return pixels, target


def load_predictor(
    path: Path,
    *,
    settings: Sequence[str] = (),
    scores: str = "corrected",
    device: str | None = None,
    start: Callable[[Config], Processes] = start_runtime,
) -> Predictor:
    """Build the detector of a checkpoint. Raises CheckpointError, ConfigError and StartError.

    settings   KEY=VALUE overrides of its config
    scores     published, or corrected where the head allows it
    device     auto | cpu | cuda; None: of the config
    start      starts the processes
    """
    tune_allocation()
    checkpoint = load_checkpoint(path)
    chosen = [*settings, *([f"runtime.device={device}"] if device is not None else [])]
    config = read_checkpoint(path, checkpoint.config, chosen).evaluated()
    if scores == "corrected" and can_correct(config):
        config = replace(config, evaluation=replace(config.evaluation, scores="corrected"))
    elif scores == "published":
        config = replace(config, evaluation=replace(config.evaluation, scores="published"))
    return build_predictor(config, checkpoint, path, start(config))


def build_predictor(config: Config, checkpoint: Checkpoint, path: Path, processes: Processes) -> Predictor:
    """The detector of a config with the weights of a checkpoint."""
    names, ids = checkpoint.categories, checkpoint.category_ids
    if len(names) != config.model.class_count:
        raise CheckpointError(f"{path}: names {len(names)} classes, but its detector has {config.model.class_count}")
    remarks = []
    if not ids:
        ids = list(range(1, len(names) + 1))
        remarks.append(f"{path} does not say the category ids of its classes: 1 to {len(names)} are assumed")
    factor = checkpoint.resize_factor
    if factor <= 0:
        factor = 1.0
        remarks.append(
            f"{path} does not say at which scale it was trained: one network pixel per image pixel is assumed; "
            "otherwise give --scale"
        )
    detector = build_detector(config)
    load_weights(detector, checkpoint.best_weights, source=str(path))
    accelerate(detector.to(processes.device), config.runtime, device_type=processes.device.type)
    return Predictor(
        detector=detector,
        postprocess=build_postprocess(config),
        transforms=build_eval_transforms(config.data),
        config=config,
        processes=processes,
        class_names=list(names),
        category_ids=list(ids),
        resize_factor=factor,
        remarks=tuple(remarks),
    )


def can_correct(config: Config) -> bool:
    """Whether scores can be corrected: softmax, with a weight of the background."""
    decoder = config.criterion.decoder
    return decoder.classification == "softmax" and decoder.no_object_weight > 0


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
