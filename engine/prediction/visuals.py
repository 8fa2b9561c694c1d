"""Pictures of predictions: boxes by class, the counts, and for an image of many tiles the density beside it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from engine.drawing import INK, PAPER, Colour, Line, beside, colour_bar, colour_map, resized, stack, text_line
from engine.prediction.outputs import safe_name
from engine.prediction.records import ImageResult

# M. Okabe and K. Ito, Color Universal Design (2008): eight colours that colour-blind people tell apart; black stands
# for white here, as aerial images are dark.
COLOURS: tuple[Colour, ...] = (
    *((240, 228, 66), (86, 180, 233), (230, 159, 0), (204, 121, 167)),
    *((255, 255, 255), (213, 94, 0), (0, 158, 115), (0, 114, 178)),
)
OVERVIEW_PX = 1600
"""Longer images are reduced to it"""
_PANEL_PX = 800  # smaller images are enlarged by the largest whole factor that keeps their longer side within this
_TEXT, _SMALL = 20, 16  # font sizes, px
_LEAST_PX = 4  # least side of a drawn box
_SHOWN = 8  # classes named in the legend


def draw_prediction(
    result: ImageResult, image: Image.Image, density: np.ndarray | None, class_names: Sequence[str]
) -> Image.Image:
    """A title with the counts, the image with its boxes, and the density of an image of several tiles.

    image     RGB, whole or as an overview
    density   (h, w) objects per cell over the whole image; None for no second panel
    """
    assert result.objects is not None
    longer = max(image.size)
    scale = max(1, _PANEL_PX // longer) if longer <= OVERVIEW_PX else OVERVIEW_PX / longer
    panel = resized(np.asarray(image), scale)
    boxes = result.objects.boxes * (panel.width / result.width)
    _draw_boxes(panel, boxes, result.objects.labels, line=2 if scale >= 2 else 1)
    panels = [panel]
    if density is not None and result.num_tiles + result.num_blank > 1:
        panels.append(_density_panel(panel, density))
    lines = [text_line([result.path], _TEXT), text_line(_counts(result), _SMALL)]
    legend = _legend(result.objects.labels, class_names)
    if legend:
        lines.append(text_line(legend, _SMALL))
    return ImageOps.expand(stack([*lines, beside(panels, gap=12)]), 12, PAPER)


def visual_file(folder: Path, result: ImageResult) -> Path:
    """visuals/NAME.jpg, behind the name of the image with its extension: stems may be equal."""
    return folder / "visuals" / f"{safe_name(result.path)}.jpg"


def _counts(result: ImageResult) -> Line:
    assert result.objects is not None
    parts = [f"{len(result.objects)} found"]
    if result.expected_count is not None:
        parts.append(f"{result.expected_count:.1f} expected by all scores")
    if result.predicted_count is not None:
        parts.append(f"{result.predicted_count:.1f} by density")
    parts.append(f"{result.num_queries:,} queries")
    if result.num_tiles + result.num_blank > 1:
        parts.append(f"{result.num_tiles} tiles" + (f", {result.num_blank} blank" if result.num_blank else ""))
    return [",   ".join(parts)]


def _legend(labels: np.ndarray, class_names: Sequence[str]) -> Line:
    counts = Counter(labels.tolist()).most_common()
    line: Line = []
    for label, count in counts[:_SHOWN]:
        framed = ImageOps.expand(Image.new("RGB", (12, 12), _colour(label)), 1, INK)  # white is one of the colours
        line += [framed, f"{class_names[label]} {count}  "]
    return [*line, f"and {len(counts) - _SHOWN} more classes"] if len(counts) > _SHOWN else line


def _draw_boxes(panel: Image.Image, boxes: np.ndarray, labels: np.ndarray, *, line: int) -> None:
    """Lines run outside of a box, over a dark line; the best box last."""
    draw = ImageDraw.Draw(panel)
    centres, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clip(min=_LEAST_PX)
    corners = np.rint(np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)).astype(np.int64)
    for (left, top, right, bottom), label in list(zip(corners.tolist(), labels.tolist(), strict=True))[::-1]:
        around = [left - line - 1, top - line - 1, right + line, bottom + line]
        draw.rectangle(around, outline=INK)
        draw.rectangle(
            [left - line, top - line, right + line - 1, bottom + line - 1], outline=_colour(label), width=line
        )


def _colour(label: int) -> Colour:
    return COLOURS[label % len(COLOURS)]


def _density_panel(panel: Image.Image, density: np.ndarray) -> Image.Image:
    peak = float(density.max())
    shares = np.asarray(
        Image.fromarray((density / (peak if peak > 0 else 1.0)).astype(np.float32)).resize(
            panel.size, Image.Resampling.BILINEAR
        )
    )
    caption = text_line(["density   0", colour_bar(), f"{peak:.3g} objects per cell (peak)"], _SMALL)
    return stack([Image.fromarray(colour_map(np.sqrt(shares))), caption])
