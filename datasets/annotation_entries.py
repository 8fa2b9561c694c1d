"""The images and categories of a COCO file, checked entry by entry; a faulty one is a finding and left out."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotation_columns import as_category_id, describe, is_integer, shorten
from datasets.findings import Findings, one_line
from datasets.packed_strings import PackedStrings

MAX_SIDE = 2**20
"""px; no image is that wide."""


@dataclass(frozen=True)
class Categories:
    """names (K), ids (K,) int64, both by ascending id; refused: ids of entries with another fault."""

    names: tuple[str, ...]
    ids: np.ndarray
    refused: frozenset[int]


@dataclass(frozen=True)
class Images:
    """ids (I,) int64, file_names (I), sizes (I, 2) int64 height, width, px; refused as in Categories."""

    ids: np.ndarray
    file_names: PackedStrings
    sizes: np.ndarray
    refused: frozenset[int]


def read_categories(entries: list[Any], path: Path, findings: Findings) -> Categories:
    """Every category becomes a class."""
    names: dict[int, str] = {}
    taken: set[str] = set()
    refused: set[int] = set()

    def check(entry: dict[str, Any]) -> str | None:
        category_id, name = as_category_id(entry["id"]), entry["name"]
        if category_id is None:
            return f"id {shorten(entry['id'])} is not an integer; number the categories"
        if not isinstance(name, str | int):
            refused.add(category_id)
            return f"name {shorten(name)} is no text; write the class's name"
        if category_id in names or str(name) in taken:
            return f"id {category_id} or name {shorten(name)} appears twice; make both unique"
        names[category_id] = one_line(str(name))
        taken.add(str(name))
        if type(entry["id"]) is not int:
            findings.add("fixed", "category_id", f"{path}: categories: id {shorten(entry['id'])} read as {category_id}")
        return None

    _check_each("categories", entries, ("id", "name"), check, path, findings)
    ids = sorted(names)
    return Categories(tuple(names[i] for i in ids), np.array(ids, dtype=np.int64), frozenset(refused))


def read_images(entries: list[Any], path: Path, findings: Findings) -> Images:
    """In the file's order."""
    first: dict[int, int] = {}
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    refused: set[int] = set()

    def check(entry: dict[str, Any]) -> str | None:
        image_id = entry["id"]
        if not is_integer(image_id) or not 0 <= image_id < 2**63:
            return f"id {shorten(image_id)} is not an integer >= 0 of 63 bits; number the images"
        if image_id in first:
            return f"id {shorten(image_id)} is also that of image {first[image_id]} of the file; make ids unique"
        if (fault := _name_fault(entry["file_name"]) or _size_fault(entry)) is not None:
            refused.add(int(image_id))
            return fault
        first[int(image_id)] = len(first)
        names.append(entry["file_name"])
        sizes.append((int(entry["height"]), int(entry["width"])))
        return None

    _check_each("images", entries, ("id", "file_name", "height", "width"), check, path, findings)
    return Images(
        ids=np.array(list(first), dtype=np.int64),
        file_names=PackedStrings.of(names),
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        refused=frozenset(refused),
    )


def _check_each(
    section: str,
    entries: list[Any],
    fields: tuple[str, ...],
    check: Callable[[dict[str, Any]], str | None],
    path: Path,
    findings: Findings,
) -> None:
    for number, entry in enumerate(entries):
        lacking = [key for key in fields if not isinstance(entry, dict) or key not in entry]
        if lacking:
            fault: str | None = f"has no field {lacking[0]!r}; add it (found {shorten(entry)})"
        else:
            fault = check(entry)
        if fault is not None:
            findings.add("error", f"bad_{section}", f"{path}: {describe(section, number, entry)}: {fault}")


def _name_fault(name: Any) -> str | None:
    if not isinstance(name, str) or not name or "\0" in name:
        return f"file_name {shorten(name)} is not a file name; write a relative path"
    if os.path.isabs(name) or (".." in name and Path(os.path.normpath(name)).parts[:1] == ("..",)):
        return (
            f"file_name {shorten(name)} leads out of the images folder; write it relative to that folder, and move "
            "the folder by data.root"
        )
    return None


def _size_fault(entry: dict[str, Any]) -> str | None:
    for key in ("height", "width"):
        value = entry[key]
        if not is_integer(value) or not 1 <= value < MAX_SIDE:
            return f"{key} {shorten(value)} is not a size in px, 1 to {MAX_SIDE - 1}; write the image's own"
    return None
