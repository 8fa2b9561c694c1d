"""Splits of a data set: no image in two of them, and a validation split where there is none."""

from __future__ import annotations

import hashlib
import re
from collections import Counter

from datasets.errors import DataError
from scripts.support.raw_data import RawData, RawImage

ORDER = ("train", "val", "test")


def settle_splits(data: RawData, *, val_share: float, split_by: str | None, seed: int) -> None:
    """Drop images that are in an earlier split already, and make val from train if there is neither val nor test.

    split_by   regular expression; images whose names have the same first group, or match, stay together, and all
               splits are made anew
    """
    drop_repeats(data)
    if split_by is not None:
        images = [image for split in ORDER for image in data.splits.get(split, [])]
        data.splits = divide(images, val_share, split_by, seed)
        data.remarks.append(_described(data, f"by {split_by!r}"))
    elif not data.splits.get("val") and not data.splits.get("test"):
        data.splits = divide(data.splits.get("train", []), val_share, None, seed)
        data.remarks.append(_described(data, f"at random, seed {seed}"))
    if not data.splits.get("train"):
        others = ", ".join(name for name in data.splits if data.splits[name])
        raise DataError(f"no training images, only {others}; --split-by '.*' divides all images anew")


def drop_repeats(data: RawData) -> None:
    """Of an image, or part of one, that several splits list, the first stays: train, val, test."""
    seen: set[object] = set()
    for split in ORDER:
        kept = []
        for image in data.splits.get(split, []):
            key = (image.file.resolve(), image.window)
            if key in seen:
                data.notes["image_in_two_splits"] += 1
            else:
                seen.add(key)
                kept.append(image)
        if split in data.splits:
            data.splits[split] = kept


def divide(images: list[RawImage], share: float, pattern: str | None, seed: int) -> dict[str, list[RawImage]]:
    """train and val; groups in a random order fill val until it has its share of the images. Raises DataError."""
    groups: dict[str, list[RawImage]] = {}
    for image in images:
        groups.setdefault(group_of(image.name, pattern), []).append(image)
    if len(groups) < 2:
        raise DataError(
            f"--split-by {pattern!r}: all {len(images)} images are one group; a training needs at least two"
            if pattern is not None
            else f"{len(images)} image: too few to make a validation split of them"
        )
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())
    wanted, val = max(round(share * len(images)), 1), set[str]()
    for name in order[:-1]:
        if sum(len(groups[each]) for each in val) + len(groups[name]) / 2 <= wanted or not val:
            val.add(name)
    return {
        "train": [image for image in images if group_of(image.name, pattern) not in val],
        "val": [image for image in images if group_of(image.name, pattern) in val],
    }


def group_of(name: str, pattern: str | None) -> str:
    """The first group that the pattern matches in the name, or all that it matches; without a match the name."""
    if pattern is None:
        return name
    found = re.search(pattern, name)
    return name if found is None else (found.group(1) if found.groups() else found.group())


def _described(data: RawData, how: str) -> str:
    sizes = Counter({split: len(images) for split, images in data.splits.items()})
    return f"split {how}: {', '.join(f'{count} {name}' for name, count in sizes.items())}"
