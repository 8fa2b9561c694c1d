"""A look at all image files of a data set before anything is trained on them; every problem is a finding."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets.findings import Findings, one_line
from datasets.image_orientation import ExifPolicy
from datasets.images import ImageFile, ImageTraits, inspect_image, read_image
from datasets.structures import DataError

PLAIN_MODES = ("RGB", "L")


def check_places(files: Sequence[ImageFile], *, root: Path, follow_links: bool, findings: Findings) -> None:
    """Look for every file, one directory listing per folder, and refuse links that lead out of the images folder.

    follow_links   accept such links
    """
    inside = os.path.realpath(root)
    listings: dict[Path, _Listing] = {}
    for file in files:
        folder = file.path.parent
        if folder not in listings:
            listings[folder] = _list(folder)
        listing, name, where = listings[folder], file.path.name, one_line(str(file.path))
        if name not in listing.files:
            similar = listing.by_lower_case.get(name.lower())
            what = "is a folder" if name in listing.folders else "no such image"
            hint = f"{similar} exists: names are case-sensitive" if similar else "check file_name"
            problem = f"{where}: {what}; {hint} ({file.entry})"
            findings.add("error", "missing_image", problem, hint="fetch the images, or set data.root and the folder")
        elif not follow_links and not _is_inside(listing, name, inside):
            target = one_line(os.path.realpath(file.path))
            problem = f"{where}: a link to {target}, outside of the images folder ({file.entry})"
            findings.add("error", "link_outside", problem, hint="set data.follow_links: true if you trust these links")


def check_contents(
    files: Sequence[ImageFile],
    *,
    decode: bool,
    skip: bool,
    max_pixels: int,
    exif: ExifPolicy,
    threads: int,
    findings: Findings,
) -> None:
    """Read the header of every file, or decode it whole, and compare it with the annotation file.

    skip   a bad image is counted as left out, not as an error
    exif   as in `read_image`
    """
    look = partial(_look, decode=decode, max_pixels=max_pixels, exif=exif)
    ambiguous: list[tuple[ImageFile, int]] = []
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for file, traits in zip(files, pool.map(look, files), strict=True):
            where = one_line(str(file.path))
            if isinstance(traits, DataError):
                findings.add("skipped" if skip else "error", traits.reason, str(traits), hint=SKIP_HINT)
                continue
            if traits.mode not in PLAIN_MODES:
                message = f"{where}: mode {traits.mode} becomes RGB ({file.entry})"
                findings.add("fixed", "image_mode", message)
            if traits.frame.applied:
                message = f"{where}: turned as its EXIF orientation {traits.frame.orientation} says ({file.entry})"
                findings.add("fixed", "image_rotation", message)
            if traits.frame.ambiguous:
                ambiguous.append((file, traits.frame.orientation))
            if traits.animated:
                findings.add("warning", "animation", f"{where}: only the first frame is used ({file.entry})")

    _report_ambiguous(ambiguous, findings)


def _report_ambiguous(found: Sequence[tuple[ImageFile, int]], findings: Findings) -> None:
    """One warning for all images whose size is annotated either way."""
    if not found:
        return
    first = found[0][0]
    kinds = ", ".join(f"{kind}: {count:,}" for kind, count in sorted(Counter(kind for _, kind in found).items()))
    message = (
        f"{len(found):,} image{'s' if len(found) > 1 else ''} with a camera rotation that the size cannot confirm "
        f"(EXIF orientation {kinds}), first {one_line(str(first.path))} ({first.entry}): read as stored. Boxes drawn "
        "in a tool that turns images, such as a browser or OpenCV, are misplaced: look at some, then set data.exif: "
        "apply or ignore"
    )
    findings.add("warning", "exif_ambiguous", message, count=len(found))


SKIP_HINT = "or set data.on_bad_image: skip to train without such images"


def _look(file: ImageFile, *, decode: bool, max_pixels: int, exif: ExifPolicy) -> ImageTraits | DataError:
    try:
        traits = inspect_image(file, max_pixels=max_pixels, exif=exif)
        if decode:
            read_image(file, max_pixels=max_pixels, exif=exif)
    except DataError as error:
        return error
    return traits


@dataclass(frozen=True)
class _Listing:
    """A folder: its real place, the names of its files (links to files among them), links and folders."""

    place: str
    files: frozenset[str]
    links: frozenset[str]
    folders: frozenset[str]
    by_lower_case: dict[str, str]


def _list(folder: Path) -> _Listing:
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except (OSError, ValueError):  # ValueError: a name that no file can have
        entries = []
    files = frozenset(entry.name for entry in entries if entry.is_file())
    return _Listing(
        place=os.path.realpath(folder) if entries else "",
        files=files,
        links=frozenset(entry.name for entry in entries if entry.is_symlink()),
        folders=frozenset(entry.name for entry in entries if entry.is_dir()),
        by_lower_case={name.lower(): name for name in files},
    )


def _is_inside(listing: _Listing, name: str, root: str) -> bool:
    place = os.path.realpath(os.path.join(listing.place, name)) if name in listing.links else listing.place
    return os.path.commonpath([place, root]) == root
