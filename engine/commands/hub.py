"""Detectors for other programs: `torch.hub` and `hubconf.py` give one, its `predict` takes an image."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from configs.schema import Config
from datasets.build import raster_options
from datasets.images.decode import ImageFile
from datasets.images.rasters import RasterOptions, open_raster
from datasets.structures import DataError
from engine.checkpoints.checkpoint import CheckpointError
from engine.commands.predict import Predictor, load_predictor
from engine.distributed.processes import Processes
from engine.distributed.rendezvous import StartError
from engine.prediction.images import Selection, merge_findings, search_tiles, tile_findings
from engine.prediction.tiles import plan_tiles

MAX_PIXELS = 400_000_000
_READING = RasterOptions(MAX_PIXELS)


@dataclass(frozen=True)
class ImageDetections:
    """What was found in one image, best first."""

    boxes: Tensor
    """(N, 4) float64 xyxy px of the image"""
    scores: Tensor
    """(N,) float64"""
    labels: Tensor
    """(N,) int64"""
    class_names: list[str]
    """Of each label, 0 to K - 1"""
    predicted_count: float | None
    """Objects by the density map; None without one"""
    expected_count: float | None
    """Sum of the corrected probabilities of an object; None where there are none"""
    num_queries: int

    @property
    def names(self) -> list[str]:
        """(N,) the class of each detection."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def __len__(self) -> int:
        return len(self.boxes)


class ImageDetector:
    """A trained detector; images larger than its input are cut into tiles, as in `scripts/predict.py`."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    @property
    def class_names(self) -> list[str]:
        return self.predictor.class_names

    def predict(
        self,
        image: str | Path | Image.Image | np.ndarray | Tensor,
        *,
        conf: float = 0.25,
        overlap: float = 0.2,
        scale: float = 1.0,
    ) -> ImageDetections:
        """Find the objects of one image.

        image     path, PIL image, uint8 array (H, W, 3) RGB, or tensor (3, H, W) RGB, uint8 or float in [0, 1]
        conf      lowest score
        overlap   of tiles, a share of their side
        scale     network pixels per image pixel, over the training's

        Raises DataError for a file that cannot be read, ValueError for an image of another shape or type, and for
        other values.
        """
        if not 0 <= conf <= 1:
            raise ValueError(f"conf {conf} is not in 0..1")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap {overlap} is not a share of a tile's side: 0, or more and below 1")
        if not 0 < scale < float("inf"):
            raise ValueError(f"scale {scale} is not above 0")
        picture = as_picture(image, raster_options(self.predictor.config.data, max_pixels=MAX_PIXELS))
        plan = plan_tiles(*picture.size, tile=self.predictor.tile_size(scale), overlap=overlap)
        selection = Selection(conf)
        if len(plan) == 1:
            (prediction,) = self.predictor.detect([picture])
            findings = tile_findings(plan, 0, prediction, selection)
        else:
            size = self.predictor.config.data.batch_size
            findings = search_tiles(plan, picture.crop, self.predictor.detect, batch_size=size, selection=selection)
        found = merge_findings(plan, findings)
        return ImageDetections(
            boxes=torch.from_numpy(found.objects.boxes.copy()),
            scores=torch.from_numpy(found.objects.scores.copy()),
            labels=torch.from_numpy(found.objects.labels.copy()),
            class_names=self.class_names,
            predicted_count=found.predicted_count,
            expected_count=found.expected_count,
            num_queries=found.num_queries,
        )


def as_picture(image: str | Path | Image.Image | np.ndarray | Tensor, reading: RasterOptions = _READING) -> Image.Image:
    """RGB.

    reading   of a file, as in training

    Raises ValueError, DataError.
    """
    if isinstance(image, str | Path):
        return _read_file(Path(image), reading)
    if isinstance(image, Image.Image):
        if image.mode == "F" or image.mode.startswith("I"):
            raise ValueError(f"a PIL image of mode {image.mode} holds more than 8 bits; scale its values to 0..255")
        return image.convert("RGB")
    array = image
    if isinstance(array, Tensor):
        if array.ndim != 3 or len(array) != 3:
            raise ValueError(f"a tensor of shape {tuple(array.shape)} is no RGB image; give (3, H, W)")
        if array.is_floating_point() and array.numel():
            low, high = float(array.min()), float(array.max())
            if not (low >= 0 and high <= 1):
                raise ValueError(
                    f"a float tensor must lie in [0, 1], this one in [{low:g}, {high:g}]; do not normalise it"
                )
            array = (array * 255).round().to(torch.uint8)
        array = array.permute(1, 2, 0).cpu().numpy()
    if not isinstance(array, np.ndarray):
        raise ValueError(f"a {type(image).__name__} is no image; give a path, a PIL image, an array or a tensor")
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise ValueError(f"an array of shape {array.shape}, {array.dtype}, is no image; give uint8 (H, W, 3), RGB")
    return Image.fromarray(np.ascontiguousarray(array))


def _read_file(path: Path, reading: RasterOptions) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS  # decoding sets it, and the calling program has its own
    try:
        raster = open_raster(ImageFile(path), reading)
        pixels = raster.read((0, 0, raster.width, raster.height))
        raster.close()
    except DataError as error:
        if error.reason not in ("band_count", "deep_image"):
            raise
        problem = error.summary().partition(";")[0]
        raise DataError(f"{problem}; give its pixels as a uint8 array (H, W, 3)", error.reason) from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return Image.new("RGB", (raster.width, raster.height)) if pixels is None else pixels


def load_detector(
    checkpoint: str | Path, *, system: str, device: str = "auto", scores: str = "corrected"
) -> ImageDetector:
    """The detector of a checkpoint.

    scores   corrected (where the head allows it) | published

    Raises CheckpointError if it is of another system than asked for, ValueError for other scores.
    """
    if scores not in ("corrected", "published"):
        raise ValueError(f"scores {scores!r}: give corrected or published")
    path = Path(checkpoint)
    with torch.random.fork_rng():  # the initial weights are drawn, then replaced
        predictor = load_predictor(path, device=device, scores=scores, start=_one_process)
    if (found := system_of(predictor.config)) != system:
        raise CheckpointError(f"{path}: holds a {found}, not a {system}; use the entry point {found}")
    return ImageDetector(predictor)


def _one_process(config: Config) -> Processes:
    """Of a program that is not ours: its process group, threads and random numbers stay as they are."""
    device = config.runtime.device
    if device == "cuda" and not torch.cuda.is_available():
        raise StartError("device cuda: this machine shows no GPU; use auto or cpu")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    chosen = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    return Processes(rank=0, world_size=1, device=chosen)


def system_of(config: Config) -> str:
    """dino, dino_d3q, deformable_detr or deformable_detr_d3q."""
    return config.model.detector + ("" if config.model.d3q is None else "_d3q")
