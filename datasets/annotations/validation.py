"""Images and categories of a COCO file, checked entry by entry; a faulty one is dropped, with a finding."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotations.columns import PackedStrings
from datasets.annotations.json_stream import as_integer, describe, id_key, shorten
from datasets.findings import Findings, one_line

MAX_SIDE = 2**20
"""px; no image is that wide."""


@dataclass(frozen=True)
class Categories:
    """names (K), ids (K,) int64, both by ascending id.

    parents   names of those that are not classes
    refused   keys (id_key) of the ids of faulty entries
    """

    names: tuple[str, ...]
    ids: np.ndarray
    parents: tuple[str, ...]
    refused: frozenset[Hashable]


@dataclass(frozen=True)
class Images:
    """ids (I,) int64, file_names (I), sizes (I, 2) int64 height, width, px; refused as in Categories.

    named   ids of the file that are no numbers -> their numbers, which no other image has
    """

    ids: np.ndarray
    file_names: PackedStrings
    sizes: np.ndarray
    named: dict[str, int]
    refused: frozenset[Hashable]

    def number_of(self, value: Any) -> int | None:
        """The number of the image that an `image_id` means, if it is one."""
        if isinstance(value, str) and value in self.named:
            return self.named[value]
        number = as_integer(value)
        return None if number in self._given else number

    @cached_property
    def _given(self) -> frozenset[int]:
        """Numbers that are not ids of the file."""
        return frozenset(self.named.values())


def read_categories(
    entries: list[Any],
    path: Path,
    findings: Findings,
    *,
    used: Collection[Hashable] = (),
    num_classes: int | None = None,
) -> Categories:
    """Every category becomes a class, except parents: those without objects that are the supercategory of others.

    used          keys (id_key) of the categories of annotations
    num_classes   of the model: parents stay where it counts them
    """
    names: dict[int, str] = {}
    owners: dict[str, int] = {}
    fixes = Fixes()
    parents = _find_parents(entries, used, num_classes, path, findings)

    def check(number: int, entry: dict[str, Any]) -> str | None:
        category_id, name = as_integer(entry["id"]), entry["name"]
        if category_id is None:
            return f"id {shorten(entry['id'])} is not an integer; number the categories"
        if not isinstance(name, str | int):
            return f"name {shorten(name)} is no text; write the class's name"
        if category_id in names:
            return f"id {category_id} appears twice, for {names[category_id]!r} too; make ids unique"
        if str(name) in owners:
            return f"name {shorten(name)} appears twice, for id {owners[str(name)]} too; make names unique"
        names[category_id] = one_line(str(name))
        owners[str(name)] = category_id
        if type(entry["id"]) is not int:
            where = describe("categories", number, entry)
            fixes.note("category_id", lambda: f"{path}: {where}: id {shorten(entry['id'])} read as {category_id}")
        return None

    refused = _check_each("categories", entries, ("id", "name"), check, path, findings, excluded=parents)
    fixes.report(findings)
    ids = sorted(names)
    return Categories(
        names=tuple(names[i] for i in ids),
        ids=np.array(ids, dtype=np.int64),
        parents=tuple(one_line(str(entries[place]["name"])) for place in sorted(parents)),
        refused=refused,
    )


def _find_parents(
    entries: list[Any], used: Collection[Hashable], num_classes: int | None, path: Path, findings: Findings
) -> frozenset[int]:
    """Places of the entries that are no classes; a warning names them, and those that only `num_classes` makes one."""
    written = [entry if isinstance(entry, dict) else {} for entry in entries]
    names = Counter(str(entry.get("name")) for entry in written)
    children = Counter(str(entry.get("supercategory")) for entry in written)
    found = [
        place
        for place, entry in enumerate(written)
        if {"id", "name"} <= entry.keys()
        and id_key(entry["id"]) not in used
        and children[str(entry["name"])] > (entry.get("supercategory") == entry["name"])
    ]
    if len(found) == len(entries):
        return frozenset()
    dropped = [place for place in found if names[str(written[place]["name"])] > 1]
    if num_classes != len(entries) - len(dropped):
        dropped = found
    for place in found:
        outcome = "no class here"
        if place not in dropped:
            outcome = f"a class only because model.num_classes counts it; set {num_classes - 1} to drop it"  # type: ignore[operator]
        where = describe("categories", place, entries[place])
        message = (
            f"{path}: {where}: {shorten(written[place]['name'])} has no objects and is the supercategory of others: "
            f"{outcome}"
        )
        findings.add("warning", "parent_category", message)
    return frozenset(dropped)


def read_images(entries: list[Any], path: Path, findings: Findings) -> Images:
    """In the file's order. An id that is a name gets the entry's place as its number, or another that is free."""
    first: dict[int, int] = {}
    names: list[str] = []
    sizes: list[tuple[int, int]] = []
    numbers, fixes = _ImageNumbers(entries), Fixes()

    def check(place: int, entry: dict[str, Any]) -> str | None:
        image_id = numbers.number_of(place, entry["id"])
        if image_id is None or not 0 <= image_id < 2**63:
            return f"id {shorten(entry['id'])} is neither an integer >= 0 of 63 bits nor a name; number the images"
        if image_id in first:
            return f"id {shorten(entry['id'])} is also that of images[{first[image_id]}]; make ids unique"
        height, width = as_integer(entry["height"]), as_integer(entry["width"])
        fault = _name_fault(entry["file_name"]) or _size_fault(entry, height=height, width=width)
        if fault is not None:
            return fault
        if type(entry["id"]) is not int:
            reason = "image_name" if entry["id"] in numbers.named else "image_id"
            fixes.note(reason, lambda: f"{path}: {describe('images', place, entry)}: read as {image_id}")
        if type(entry["height"]) is not int or type(entry["width"]) is not int:
            what = f"height {shorten(entry['height'])}, width {shorten(entry['width'])} read as integers"
            fixes.note("image_size", lambda: f"{path}: {describe('images', place, entry)}: {what}")
        first[image_id] = place
        names.append(entry["file_name"])
        sizes.append((int(height), int(width)))  # type: ignore[arg-type]  # no fault: both are integers
        return None

    refused = _check_each("images", entries, ("id", "file_name", "height", "width"), check, path, findings)
    fixes.report(findings)
    return Images(
        ids=np.array(list(first), dtype=np.int64),
        file_names=PackedStrings.of(names),
        sizes=np.array(sizes, dtype=np.int64).reshape(-1, 2),
        named=numbers.named,
        refused=refused,
    )


class _ImageNumbers:
    """Numbers for ids of images: their own, or for names one that no other image has."""

    def __init__(self, entries: list[Any]) -> None:
        self.named: dict[str, int] = {}
        self._taken = {as_integer(entry.get("id")) for entry in entries if isinstance(entry, dict)}
        self._count = len(entries)

    def number_of(self, place: int, value: Any) -> int | None:
        """None for what is neither an integer nor a name."""
        number = as_integer(value)
        if number is not None or not isinstance(value, str) or not value.strip():
            return number
        if value not in self.named:
            while place in self._taken:
                place += self._count
            self.named[value] = place
        return self.named[value]


def _check_each(
    section: str,
    entries: list[Any],
    fields: tuple[str, ...],
    check: Callable[[int, dict[str, Any]], str | None],
    path: Path,
    findings: Findings,
    *,
    excluded: Collection[int] = (),
) -> frozenset[Hashable]:
    """Keys of the ids of the entries that have a fault; `excluded` are places of entries that are not checked."""
    refused: set[Hashable] = set()
    for place, entry in enumerate(entries):
        if place in excluded:
            continue
        lacking = [key for key in fields if not isinstance(entry, dict) or key not in entry]
        if lacking:
            fault: str | None = f"has no field {lacking[0]!r}; add it (found {shorten(entry)})"
        else:
            fault = check(place, entry)
        if fault is not None:
            findings.add("error", f"bad_{section}", f"{path}: {describe(section, place, entry)}: {fault}")
            if isinstance(entry, dict) and "id" in entry:
                refused.add(id_key(entry["id"]))
    return frozenset(refused)


def _name_fault(name: Any) -> str | None:
    if not isinstance(name, str) or not name or "\0" in name:
        return f"file_name {shorten(name)} is not a file name; write a relative path"
    if os.path.isabs(name) or (".." in name and Path(os.path.normpath(name)).parts[:1] == ("..",)):
        return (
            f"file_name {shorten(name)} leads out of the images folder; write it relative to that folder, and move "
            "the folder by data.root"
        )
    return None


def _size_fault(entry: dict[str, Any], **sizes: int | None) -> str | None:
    for key, value in sizes.items():
        if value is None or not 1 <= value < MAX_SIDE:
            return f"{key} {shorten(entry[key])} is not a size in px, 1 to {MAX_SIDE - 1}; write the image's own"
    return None


class Fixes:
    """Values read in another form than written, such as "3" as 3: counted by reason, with the first of each."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[str, int]] = {}

    def note(self, reason: str, message: Callable[[], str]) -> None:
        """message   called once per reason"""
        first, count = self._found.get(reason, ("", 0))
        self._found[reason] = first or message(), count + 1

    def report(self, findings: Findings) -> None:
        for reason, (first, count) in self._found.items():
            more = f" ({count:,} such values)" if count > 1 else ""
            findings.add("fixed", reason, f"{first}{more}", count=count)
