"""Predictions and density maps drawn on images: green hits, red misses, blue false alarms, as in the D3Q paper.

The sheet is composed of small images beside or below each other, so that texts cannot overlap.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageOps

from engine.drawing import (
    INK,
    PAPER,
    Colour,
    Line,
    beside,
    colour_bar,
    colour_map,
    font,
    resized,
    stack,
    swatch,
    text_line,
)

_Drawn = tuple[NDArray[np.int64], int, Colour]  # outline (4,) with inclusive corners, label, colour

TRUE_POSITIVE: Colour = (0, 230, 60)
FALSE_NEGATIVE: Colour = (255, 40, 40)
FALSE_POSITIVE: Colour = (50, 140, 255)

_DENSITY_OPACITY = ((0.0, 0.3, 1.0), (0.5, 0.85, 0.95))  # share of the peak -> opacity
_PANEL_PX = 800  # images are enlarged by the largest whole factor that keeps their longer side within this
_LARGEST_PX = 1600  # longer images are reduced to it
_TEXT, _SMALL, _TINY, _LARGE = 22, 18, 13, 34  # font sizes, px


@dataclass(frozen=True, eq=False, kw_only=True)
class Picture:
    """One image with its objects and predictions; G objects, D detections, in px of the image.

    Array-likes of other dtypes are converted. Raises ValueError, naming image and field, for wrong shapes or numbers.
    """

    image_id: int
    image: NDArray[np.uint8]
    """(H, W, 3) RGB."""
    object_boxes: NDArray[np.float64]
    """(G, 4) xyxy. Without crowd regions; detections in them are drawn as false positives."""
    object_labels: NDArray[np.int64]
    """(G,)"""
    boxes: NDArray[np.float64]
    """(D, 4) xyxy."""
    scores: NDArray[np.float64]
    """(D,)"""
    labels: NDArray[np.int64]
    """(D,)"""
    num_queries: int
    score_name: str = "score"
    """In the caption."""
    predicted_count: float | None = None
    """Objects by the density map; None without one."""
    expected_count: float | None = None
    """Objects by the corrected scores; None where there are none."""
    density_map: NDArray[np.float64] | None = None
    """(h, w) objects per cell, over the padded network input; None for no second panel."""
    density_extent: tuple[float, float] = (1.0, 1.0)
    """Shares (height, width) of the map that the image covers, from its upper left corner; in (0, 1]."""

    def __post_init__(self) -> None:
        for name, dtype, shape in (
            ("image", np.uint8, (None, None, 3)),
            ("object_boxes", np.float64, (None, 4)),
            ("object_labels", np.int64, (len(self.object_boxes),)),
            ("boxes", np.float64, (None, 4)),
            ("scores", np.float64, (len(self.boxes),)),
            ("labels", np.int64, (len(self.boxes),)),
            ("density_map", np.float64, (None, None)),
        ):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, self._checked(name, dtype, shape))
        if not all(0 < share <= 1 for share in self.density_extent):
            raise ValueError(f"image {self.image_id}: density_extent {self.density_extent} must lie in (0, 1]")

    def _checked(self, name: str, dtype: type[np.generic], shape: tuple[int | None, ...]) -> np.ndarray:
        values = np.asarray(getattr(self, name))
        if values.ndim != len(shape) or any(want not in (None, n) for n, want in zip(values.shape, shape, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in shape)
            raise ValueError(f"image {self.image_id}: {name} has shape {values.shape}; expected ({wanted})")
        if dtype is np.uint8 and values.dtype != np.uint8:
            raise ValueError(f"image {self.image_id}: {name} has dtype {values.dtype}; expected uint8 in 0..255")
        if not np.isfinite(values).all():
            raise ValueError(f"image {self.image_id}: {name} holds NaN or infinity; there is nothing to draw")
        return values.astype(dtype, copy=False)


@dataclass(frozen=True, eq=False)
class Matching:
    """Which of D detections hit which of G objects; detections below the score threshold are neither true nor false.

    true_positive, false_positive   (D,)
    found                           (G,) objects that are hit
    """

    true_positive: NDArray[np.bool_]
    false_positive: NDArray[np.bool_]
    found: NDArray[np.bool_]


def match_detections(
    boxes: ArrayLike,
    scores: ArrayLike,
    labels: ArrayLike,
    object_boxes: ArrayLike,
    object_labels: ArrayLike,
    *,
    score_threshold: float,
    iou_threshold: float = 0.5,
) -> Matching:
    """By falling score, each detection takes the free object of its class with the highest IoU.

    boxes, scores, labels         (D, 4) xyxy px, (D,), (D,)
    object_boxes, object_labels   (G, 4) xyxy px, (G,)
    score_threshold               lowest score that counts
    iou_threshold                 lowest IoU of a hit
    """
    score, label, object_label = np.asarray(scores), np.asarray(labels), np.asarray(object_labels)
    iou = _pairwise_iou(np.reshape(boxes, (-1, 4)), np.reshape(object_boxes, (-1, 4)))
    iou[label[:, None] != object_label] = -1.0
    kept = score >= score_threshold
    true_positive, found = np.zeros(len(score), np.bool_), np.zeros(len(object_label), np.bool_)
    for detection in np.argsort(-score, kind="stable")[: kept.sum()] if len(found) else ():
        best = int(np.argmax(iou[detection]))
        if iou[detection, best] >= iou_threshold:
            true_positive[detection] = found[best] = True
            iou[:, best] = -1.0
    return Matching(true_positive, kept & ~true_positive, found)


def draw_picture(picture: Picture, class_names: Sequence[str], score_threshold: float) -> Image.Image:
    """A title, then the image with its boxes and, where there is a density map, the image under that map.

    Images up to 400 px are enlarged by a whole factor to 800 px at most, images above 1600 px are reduced. Lines run
    outside of a box; a class is named where its name covers nothing else. Raises ValueError for unnamed labels.
    """
    used, known = np.concatenate([picture.labels, picture.object_labels]), len(class_names)
    if unknown := sorted(set(used.tolist()) - set(range(known))):
        raise ValueError(f"image {picture.image_id}: label {unknown[0]} has no name; there are {known} class names")
    longer = max(picture.image.shape[:2])
    scale = min(max(1, _PANEL_PX // longer), _LARGEST_PX / longer)
    predictions = picture.boxes, picture.scores, picture.labels
    objects = picture.object_boxes, picture.object_labels
    matching = match_detections(*predictions, *objects, score_threshold=score_threshold)
    caption = text_line([f"predictions, {picture.score_name} >= {score_threshold:g}"], _SMALL)
    panels = [stack([caption, _boxes_panel(picture, matching, class_names, scale)])]
    if picture.density_map is not None:
        panels.append(_density_panel(picture, picture.density_map, scale))
    return stack([text_line(_title(picture, matching), _TEXT), beside(panels, gap=12)])


def draw_gallery(
    pictures: Sequence[Picture], class_names: Sequence[str], score_threshold: float, *, columns: int = 2
) -> Image.Image:
    """Pictures in rows of `columns` on one sheet, under heading and legend. Raises ValueError for no pictures."""
    if not pictures:
        raise ValueError("no pictures to draw; a gallery needs at least one")
    drawn = [draw_picture(picture, class_names, score_threshold) for picture in pictures]
    width, height = (max(image.size[axis] for image in drawn) for axis in (0, 1))
    cells = [ImageOps.expand(image, (0, 0, width - image.width, height - image.height), PAPER) for image in drawn]
    rows = [beside(cells[start : start + columns], gap=40) for start in range(0, len(cells), columns)]
    legend = [swatch(TRUE_POSITIVE), "true positive (TP): right class, IoU >= 0.5   ", swatch(FALSE_NEGATIVE)]
    legend += ["missed object (FN)   ", swatch(FALSE_POSITIVE), "false positive (FP)"]
    if any(picture.density_map is not None for picture in pictures):
        legend += ["   ", colour_bar(), "density, from 0 to each map's own peak"]
    top = stack([text_line([f"Predictions on {len(pictures)} images"], _LARGE), text_line(legend, _TEXT)])
    return ImageOps.expand(stack([top, *rows], gap=30), 20, PAPER)


def _title(picture: Picture, matching: Matching) -> Line:
    counts = [f"Image {picture.image_id}:  {len(picture.object_boxes)} objects"]
    estimates = (picture.predicted_count, "by density"), (picture.expected_count, "expected")
    counts += [f"{count:.1f} {source}" for count, source in estimates if count is not None]
    counts.append(f"{picture.num_queries} queries")
    hits = [swatch(TRUE_POSITIVE), f"TP {matching.true_positive.sum()}  "]
    misses = [swatch(FALSE_NEGATIVE), f"FN {(~matching.found).sum()}  "]
    return [",  ".join(counts) + "    ", *hits, *misses, swatch(FALSE_POSITIVE), f"FP {matching.false_positive.sum()}"]


def _boxes_panel(picture: Picture, matching: Matching, class_names: Sequence[str], scale: float) -> Image.Image:
    panel, line = resized(picture.image, scale), 2 if scale >= 2 else 1
    draw = ImageDraw.Draw(panel)
    groups = (
        (TRUE_POSITIVE, picture.boxes, picture.labels, matching.true_positive),
        (FALSE_POSITIVE, picture.boxes, picture.labels, matching.false_positive),
        (FALSE_NEGATIVE, picture.object_boxes, picture.object_labels, ~matching.found),
    )
    drawn: list[_Drawn] = []
    for colour, boxes, labels, chosen in groups:
        corners = np.rint(boxes[chosen] * scale).astype(np.int64)
        corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 1)
        for (left, top, right, bottom), label in zip(corners, labels[chosen], strict=True):
            # PIL's corners are inclusive: the line fills the pixels just outside the box, or the image's outermost.
            outline = np.array([left - line, top - line, right + line - 1, bottom + line - 1])
            outline = outline.clip(0, [panel.width - 1, panel.height - 1] * 2)
            draw.rectangle(outline.tolist(), outline=colour, width=line)
            drawn.append((outline, int(label), colour))
    _name_boxes(panel, drawn, class_names)
    return panel


def _name_boxes(panel: Image.Image, drawn: Sequence[_Drawn], class_names: Sequence[str]) -> None:
    """Class names above or below boxes, where they cover no box or name."""
    draw, face = ImageDraw.Draw(panel), font(_TINY)
    taken = np.array([outline for outline, _, _ in drawn]).reshape(-1, 4)
    for outline, label, colour in drawn:
        width, height = int(face.getlength(class_names[label])) + 4, _TINY + 3
        for top in (outline[1] - height - 1, outline[3] + 2):
            left, right, bottom = outline[0], outline[0] + width, top + height
            inside = top >= 0 and right <= panel.width and bottom <= panel.height
            hit = (taken[:, 0] <= right) & (taken[:, 2] >= left) & (taken[:, 1] <= bottom) & (taken[:, 3] >= top)
            if inside and not hit.any():
                draw.rectangle([left, top, right - 1, bottom - 1], fill=INK)
                draw.text((left + 2, top + height // 2), class_names[label], fill=colour, font=face, anchor="lm")
                taken = np.concatenate([taken, [[left, top, right, bottom]]])
                break


def _density_panel(picture: Picture, density_map: NDArray[np.float64], scale: float) -> Image.Image:
    """Caption with the peak, and the density over the grey image: the denser, the less of the image shows."""
    rows, columns = density_map.shape
    height, width = rows * picture.density_extent[0], columns * picture.density_extent[1]
    visible = density_map[: math.ceil(round(height, 6)), : math.ceil(round(width, 6))]
    peak = float(visible.max())
    cells = Image.fromarray((visible / (peak if peak > 0 else 1.0)).astype(np.float32))
    grey = np.asarray(resized(picture.image, scale).convert("L"))[:, :, None]
    covered = (0.0, 0.0, min(width, visible.shape[1]), min(height, visible.shape[0]))
    shares = np.asarray(cells.resize(grey.shape[1::-1], Image.Resampling.BILINEAR, box=covered))[:, :, None]
    opacity = np.interp(shares, *_DENSITY_OPACITY)
    mixed = opacity * colour_map(shares[:, :, 0]) + (1.0 - opacity) * grey
    caption = text_line(["density   0", colour_bar(), f"{peak:.3g} objects per cell (peak)"], _SMALL)
    return stack([caption, Image.fromarray(mixed.round().astype(np.uint8))])


def _pairwise_iou(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """(D, 4), (G, 4) xyxy -> (D, G); 0 for boxes without area."""
    corner = np.maximum(boxes[:, None, :2], others[None, :, :2])
    sides = np.minimum(boxes[:, None, 2:], others[None, :, 2:]) - corner
    intersection = np.prod(np.maximum(sides, 0.0), axis=2)
    area, other_area = (np.prod(corners[:, 2:] - corners[:, :2], axis=1) for corners in (boxes, others))
    return intersection / np.maximum(area[:, None] + other_area - intersection, 1e-9)
