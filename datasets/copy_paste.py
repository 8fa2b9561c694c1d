"""Copy-paste: rare objects of one training image at free places of another."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from datasets.structures import SampleKey
from datasets.transforms import Sample

if TYPE_CHECKING:
    from datasets.coco import CocoDetection
    from datasets.findings import Findings

MOST_PASTED = 10
"""Objects pasted into an image at most"""
MARGIN = 2
"""Pixels around an object that are pasted with it"""
TRIES = 20
"""Random places tried for an object"""


def rare_classes(image_shares: NDArray[np.float64], below: float) -> NDArray[np.int64]:
    """Classes that some images have, but fewer than a share of them; image_shares (K,) is the share of each class."""
    return np.nonzero((image_shares > 0) & (image_shares < below))[0]


class CopyPaste:
    """With probability p, pastes rare objects of a random image, as rectangles of pixels with a small margin.

    The rare class, then the object and so its image, are drawn alike often. All rare objects of that image are tried,
    up to MOST_PASTED. Objects whose rectangle holds part of another annotation are left out, and nothing is pasted
    over an annotation, crowds and ignored regions included. Pixels keep their size.

    objects     rare class -> indices of the images of its objects, an entry per object
    read        index -> image
    usable      index -> (N, 4) float32 xyxy clipped to the image and (N,) labels of the objects that a training sees
    annotated   index -> (M, 4) xyxy of everything annotated

    Raises DataError, naming the file, if the other image cannot be read.
    """

    stream = 1

    def __init__(
        self,
        *,
        p: float,
        objects: dict[int, NDArray[np.int64]],
        read: Callable[[int], Image.Image],
        usable: Callable[[int], tuple[NDArray[np.float32], NDArray[np.int64]]],
        annotated: Callable[[int], NDArray[np.float64]],
    ) -> None:
        if not objects:
            raise ValueError("no rare class: nothing to paste")
        self.p, self.objects = p, objects
        self.read, self.usable, self.annotated = read, usable, annotated

    def __call__(self, sample: Sample, key: SampleKey, rng: np.random.Generator) -> Sample:
        """The sample with what is pasted behind its own objects."""
        if rng.random() >= self.p:
            return sample
        source = int(rng.choice(self.objects[int(rng.choice(list(self.objects)))]))
        if source == key.index:
            return sample
        picture, image = self.read(source), sample.picture.copy()
        boxes, labels = self.usable(source)
        others, taken = self.annotated(source), self.annotated(key.index)
        pasted: list[NDArray[np.float32]] = []
        kept: list[int] = []
        for row in rng.permutation(np.nonzero(np.isin(labels, list(self.objects)))[0]).tolist():
            patch = _with_margin(boxes[row], picture)
            place = None if _overlaps(patch, others).sum() > 1 else _free_place(patch, image, taken, rng)
            if place is None:
                continue
            image.paste(picture.crop(tuple(patch.tolist())), (int(place[0]), int(place[1])))
            taken = np.concatenate([taken, place[None]])
            pasted.append(boxes[row] + np.tile(place[:2] - patch[:2], 2).astype(np.float32))
            kept.append(int(labels[row]))
            if len(kept) == MOST_PASTED:
                break
        if not kept:
            return sample
        new_boxes = torch.from_numpy(np.stack(pasted))
        new_labels = torch.tensor(kept, dtype=sample.labels.dtype)
        return Sample(image, torch.cat([sample.boxes, new_boxes]), torch.cat([sample.labels, new_labels]))


def build_copy_paste(dataset: CocoDetection, *, p: float, share: float, findings: Findings) -> CopyPaste | None:
    """Copy-paste of the classes that fewer than a share of the images have; without one a finding, and None."""
    labels = [dataset.usable_labels(index) for index in range(len(dataset))]
    present = np.concatenate([np.unique(each) for each in labels])
    shares = np.bincount(present, minlength=len(dataset.categories)) / len(dataset)
    images = np.repeat(np.arange(len(dataset)), [len(each) for each in labels])
    every = np.concatenate(labels)
    rare = {int(label): images[every == label] for label in rare_classes(shares, share)}
    if not rare:
        message = f"{dataset.table.path}: data.copy_paste_share: no class is in less than {share:g} of the images"
        findings.add("error", "no_rare_class", message, hint="raise it, or set data.copy_paste_prob: 0")
        return None
    return CopyPaste(
        p=p, objects=rare, read=dataset.read_image, usable=dataset.usable_objects, annotated=dataset.annotated
    )


def _with_margin(box: NDArray[np.float32], picture: Image.Image) -> NDArray[np.int64]:
    """Whole pixels xyxy around a box, within the picture."""
    low = np.maximum(np.floor(box[:2]) - MARGIN, 0)
    high = np.minimum(np.ceil(box[2:]) + MARGIN, picture.size)
    return np.concatenate([low, high]).astype(np.int64)


def _overlaps(box: NDArray[np.int64], others: NDArray[np.float64]) -> NDArray[np.bool_]:
    apart = (others[:, :2] >= box[2:]) | (others[:, 2:] <= box[:2])
    return ~np.any(apart, axis=1)


def _free_place(
    patch: NDArray[np.int64], image: Image.Image, taken: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64] | None:
    """A place of the patch's size within the image, xyxy, that overlaps nothing taken; None if none was found."""
    size = patch[2:] - patch[:2]
    room = np.array(image.size) - size
    if (room < 0).any():
        return None
    for low in rng.integers(0, room + 1, size=(TRIES, 2)):
        place = np.concatenate([low, low + size])
        if not _overlaps(place, taken).any():
            return place
    return None
