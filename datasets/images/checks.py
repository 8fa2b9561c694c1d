"""Checks of all image files of a data set; every problem is a finding."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from datasets.errors import DataError
from datasets.findings import Findings, one_line
from datasets.images.decode import ImageFile, ImageTraits
from datasets.images.duplicates import report_same_files
from datasets.images.folders import Folders, Listing
from datasets.images.hints import NameHints
from datasets.images.rasters import RasterOptions, inspect_whole, read_whole

PLAIN_MODES = ("RGB", "L")


def check_places(files: Sequence[ImageFile], *, root: Path, follow_links: bool, findings: Findings) -> None:
    """Check that files exist, by one listing per folder; refuse links out of the images folder, and two entries of one
    file.

    follow_links   accept such links
    """
    inside = os.path.realpath(root)
    folders = Folders()
    hints = NameHints(root, folders)
    for file in files:
        (listing, name), where = folders.find(file.path), one_line(str(file.path))
        if name not in listing.files:
            what = "is a folder" if name in listing.folders else "no such image"
            hint = hints(str(file.path.relative_to(root))) or "check file_name"
            problem = f"{where}: {what}; {hint} ({file.entry})"
            findings.add("error", "missing_image", problem, hint="fetch the images, or set data.root and the folder")
        elif not follow_links and not _is_inside(listing, name, inside):
            target = one_line(os.path.realpath(file.path))
            problem = f"{where}: a link to {target}, outside of the images folder ({file.entry})"
            findings.add("error", "link_outside", problem, hint="set data.follow_links: true if you trust these links")
    report_same_files(files, folders, findings)


def check_contents(
    files: Sequence[ImageFile],
    *,
    decode: bool,
    skip: bool,
    reading: RasterOptions,
    threads: int,
    findings: Findings,
) -> list[bytes | None]:
    """Read the header of every file, or decode it whole, and compare it with the annotation file.

    reading   how they are opened
    skip      a bad image is skipped, not an error
    returns   digests of the pixels of each file, None where they were not decoded
    """
    look = partial(_look, decode=decode, reading=reading)
    ambiguous: list[tuple[ImageFile, int]] = []
    digests: list[bytes | None] = []
    with ThreadPoolExecutor(max_workers=threads) as pool:
        for file, (traits, digest) in zip(files, pool.map(look, files), strict=True):
            where = one_line(str(file.path))
            digests.append(digest)
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
    return digests


def _report_ambiguous(found: Sequence[tuple[ImageFile, int]], findings: Findings) -> None:
    """Warn once of all images whose annotated size fits both orientations."""
    if not found:
        return
    first = found[0][0]
    kinds = ", ".join(f"{kind}: {count:,}" for kind, count in sorted(Counter(kind for _, kind in found).items()))
    message = (
        f"{len(found):,} image{'s' if len(found) > 1 else ''} with a camera rotation that the size cannot confirm "
        f"(EXIF orientation {kinds}), first {one_line(str(first.path))} ({first.entry}): read as stored. Boxes drawn "
        "in a tool that turns images, such as a browser or OpenCV, are misplaced: view some, then set data.exif: "
        "apply or ignore"
    )
    findings.add("warning", "exif_ambiguous", message, count=len(found))


SKIP_HINT = "or set data.on_bad_image: skip to train without such images"


def _look(file: ImageFile, *, decode: bool, reading: RasterOptions) -> tuple[ImageTraits | DataError, bytes | None]:
    """Traits from the header, and a digest of the pixels if they are decoded."""
    try:
        traits = inspect_whole(file, reading)
        if not decode:
            return traits, None
        image = read_whole(file, reading)
    except DataError as error:
        return error, None
    digest = hashlib.blake2b(repr(image.size).encode(), digest_size=16)
    digest.update(image.tobytes())
    return traits, digest.digest()


def _is_inside(listing: Listing, name: str, root: str) -> bool:
    place = listing.real_path(name) if name in listing.links else listing.place
    return os.path.commonpath([place, root]) == root
