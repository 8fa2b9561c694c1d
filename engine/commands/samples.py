"""A sheet of training samples as the detector sees them: augmented, with the boxes of their objects."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from configs.schema import DataConfig
from datasets.coco import CocoDetection
from datasets.errors import DataError
from datasets.structures import SampleKey, Target
from engine.drawing import Line, beside, stack, text_line
from engine.logger import naming

SAMPLES, COLUMNS, SIDE = 12, 4, 360
"""Images of the sheet, in a row, and their longest side in px"""
MARK = (255, 221, 0)
SHADE = (0, 0, 0)


def write_samples(dataset: CocoDetection, data: DataConfig, path: Path) -> None:
    """Write the sheet of the first epoch, images evenly over the data set, unless there is one.

    Images that cannot be read are not shown.
    """
    if path.exists():
        return
    chosen = sorted({round(i) for i in np.linspace(0, len(dataset) - 1, min(SAMPLES, len(dataset))).tolist()})
    cells = []
    for index in chosen:
        try:
            image, target = dataset[SampleKey(0, index)]
        except DataError:
            continue
        cells.append(draw_sample(image, target, data))
    if not cells:
        return
    rows = [beside(cells[start : start + COLUMNS], gap=12) for start in range(0, len(cells), COLUMNS)]
    with naming(path):
        stack(rows).save(path, quality=90, subsampling=0)


def draw_sample(image: Tensor, target: Target, data: DataConfig) -> Image.Image:
    """A normalised image (3, h, w) and its boxes, with a line of what it is."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (data.mean, data.std))
    pixels = ((image * std + mean).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    scale = SIDE / max(pixels.shape[:2])
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    for x0, y0, x1, y1 in (target.boxes_xyxy * scale).tolist():
        draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=SHADE)  # seen on white too
        draw.rectangle((x0, y0, x1, y1), outline=MARK)
    line: Line = [f"image {target.image_id}: {len(target.labels)} objects, {pixels.shape[1]}x{pixels.shape[0]} px"]
    return stack([picture, text_line(line, 14)])
