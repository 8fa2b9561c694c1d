"""Duplicate images: one file under several names, and copies of a file."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from datasets.findings import Findings, one_line
from datasets.images.decode import ImageFile
from datasets.images.folders import Folders

Digests = Sequence[bytes | None]
"""Of the pixels of each image, None where they were not decoded"""
MERGE = (
    "make them one entry with the annotations of both: in each, the objects of the other would be trained as background"
)


def file_keys(files: Sequence[ImageFile], folders: Folders) -> list[Hashable]:
    """Equal for the same file, whatever leads to it: the same name, ./ and .., links of files and folders, hard links.

    None without a file.
    """
    paths: list[str | None] = []
    by_number: dict[tuple[int, int], set[str]] = defaultdict(set)
    for file in files:
        listing, name = folders.find(file.path)
        if name not in listing.files:
            paths.append(None)
            continue
        real = listing.real_path(name)
        number = (listing.device, listing.files[name])
        if name in listing.links:
            found = os.stat(real)
            number = (found.st_dev, found.st_ino)
        paths.append(real)
        by_number[number].add(real)
    keys: dict[str | None, Hashable] = {None: None}
    for several in by_number.values():
        for path in several:
            keys[path] = path if len(several) == 1 else _hard_link_key(path)
    return [keys[path] for path in paths]


def _hard_link_key(path: str) -> Hashable:
    """Some file systems give one number to many files: only a count of links makes it a hard link."""
    found = os.stat(path)
    return (found.st_dev, found.st_ino) if found.st_nlink > 1 else path


def report_same_files(files: Sequence[ImageFile], folders: Folders, findings: Findings) -> None:
    """An error for every entry whose image file an earlier entry has too."""
    first: dict[Hashable, ImageFile] = {}
    for file, key in zip(files, file_keys(files, folders), strict=True):
        earlier = first.setdefault(key, file)
        if key is not None and earlier is not file:
            message = f"{name_file(earlier)} and {name_file(file)} are one image file; {MERGE}"
            findings.add("error", "same_file", message)


def report_same_pixels(files: Sequence[ImageFile], digests: Digests, objects: np.ndarray, findings: Findings) -> None:
    """An error for each group of files with the same pixels, a warning for all of those that have no object.

    objects   (N,) of each file
    """
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, digest in enumerate(digests):
        if digest is not None:
            groups[digest].append(index)
    blank: list[list[int]] = []
    for alike in groups.values():
        group = _without_links(alike, files) if len(alike) > 1 else alike
        if len(group) == 1:
            continue
        if not objects[group].any():
            blank.append(group)
            continue
        more = f" and {len(group) - 2:,} more" if len(group) > 2 else ""
        message = f"{name_file(files[group[0]])} and {name_file(files[group[1]])}{more} have the same pixels; {MERGE}"
        findings.add("error", "same_file", message, count=len(group) - 1)
    if blank:
        count = sum(map(len, blank)) - len(blank)
        pair = " and ".join(name_file(files[index]) for index in blank[0][:2])
        message = (
            f"{count:,} file{'s' if count > 1 else ''} without objects and with the pixels of another, such as {pair}: "
            "copies, or blank tiles, which are harmless"
        )
        findings.add("warning", "same_file", message, count=count)


def _without_links(group: list[int], files: Sequence[ImageFile]) -> list[int]:
    """One index for each file: several names of one file are another finding."""
    found: dict[tuple[int, int] | str, int] = {}
    for index in group:
        status = os.stat(files[index].path)
        same = (status.st_dev, status.st_ino) if status.st_nlink > 1 else os.path.realpath(files[index].path)
        found.setdefault(same, index)
    return list(found.values())


def shared_files(ours: Sequence[ImageFile], theirs: Sequence[ImageFile]) -> dict[int, int]:
    """Index among `theirs` -> index among `ours` of the same file."""
    keys = file_keys([*ours, *theirs], Folders())
    index = {key: i for i, key in reversed(list(enumerate(keys[: len(ours)]))) if key is not None}
    return {i: index[key] for i, key in enumerate(keys[len(ours) :]) if key in index}


def shared_pixels(ours: Digests, theirs: Digests, our_objects: np.ndarray, their_objects: np.ndarray) -> dict[int, int]:
    """The same by digests of the pixels, except pairs without any object: blank tiles look the same."""
    index: dict[bytes, int] = {}
    for i in np.argsort(our_objects > 0, kind="stable").tolist():  # those with objects last: they overwrite
        if (digest := ours[i]) is not None:
            index[digest] = i
    return {
        i: index[digest]
        for i, digest in enumerate(theirs)
        if digest is not None and digest in index and (their_objects[i] > 0 or our_objects[index[digest]] > 0)
    }


def name_file(file: ImageFile) -> str:
    return f"{one_line(str(file.path))} ({file.entry})"
