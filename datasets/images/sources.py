"""What a person names as images (files, folders, globs, lists, a COCO file) -> the images, in a fixed order."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from datasets.errors import DataError
from datasets.images.decode import ImageFile

SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".pnm", ".jp2", ".j2k"]
)
"""Of the files that a folder is searched for"""


@dataclass(frozen=True)
class Source:
    """One image to predict on.

    image_id   of a COCO file; else its place among the sources, from 1
    name       as a COCO file names it; else relative to what named it, with forward slashes; unique
    file       where it is, and what a COCO file says about it
    """

    image_id: int
    name: str
    file: ImageFile


def find_sources(sources: Sequence[str], *, images_root: Path | None = None) -> list[Source]:
    """All images that are named, each once.

    sources       an image, a folder (searched with its subfolders, but not for earlier results), a glob, a .txt list
                  (one path in each line, relative to the list), or one COCO file
    images_root   folder that the file names of a COCO file are relative to

    Raises DataError for what does not exist or holds no image.
    """
    if any(source.lower().endswith(".json") for source in sources):
        if len(sources) > 1:
            raise DataError(f"{sources[0]} and {len(sources) - 1} more: give a COCO file alone", "sources")
        return _of_coco(Path(sources[0]), images_root)
    if images_root is not None:
        raise DataError("--images is for a COCO file as the source", "sources")
    unique: dict[str, tuple[Path, str, str]] = {}
    for source in sources:
        for entry in _of_one(source):
            unique.setdefault(os.path.realpath(entry[0]), entry)
    entries = list(unique.values())
    named = zip(_unique_names(entries), entries, strict=True)
    return [Source(number, name, ImageFile(path)) for number, (name, (path, _, _)) in enumerate(named, start=1)]


def _of_one(source: str) -> list[tuple[Path, str, str]]:
    """(path, name, name of what it was found in) of the images of one source."""
    path = Path(source)
    if path.is_dir():
        files = sorted(p for p in _files_below(path) if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            known = ", ".join(sorted(SUFFIXES))
            raise DataError(f"{source}: no image in this folder or below; known are {known}", "empty")
        return [(p, p.relative_to(path).as_posix(), path.resolve().name) for p in files]
    if path.suffix.lower() == ".txt" and path.is_file():
        return _of_list(path)
    if path.exists() or not glob.has_magic(source):
        if not path.exists():
            raise DataError(f"{source}: no such image, folder or list", "missing_image")
        return [(path, path.name, path.resolve().parent.name)]
    base = _fixed_folder(source)
    files = sorted(Path(p) for p in glob.glob(source, recursive=True) if Path(p).is_file())
    files = [p for p in files if p.suffix.lower() in SUFFIXES]
    if not files:
        raise DataError(f"{source}: no image matches; quote the pattern, and use ** for subfolders", "empty")
    return [(p, p.relative_to(base).as_posix(), base.resolve().name) for p in files]


def _files_below(folder: Path) -> Iterator[Path]:
    """All files of a folder and its subfolders, except those of earlier predictions; links to folders are not
    followed."""
    for current, folders, files in os.walk(folder):
        place = Path(current)
        folders[:] = [name for name in folders if not _holds_prediction(place / name)]
        yield from (place / name for name in files)


def _holds_prediction(folder: Path) -> bool:
    return (folder / "prediction.json").is_file() and (folder / "parts").is_dir()


def _of_list(path: Path) -> list[tuple[Path, str, str]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a list of images ({error})", "sources") from None
    listed = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip() and line[0] != "#"]
    if not listed:
        raise DataError(f"{path}: an empty list; write one image path in each line", "empty")
    files = [(number, path.parent / line) for number, line in listed]
    if missing := [(number, file) for number, file in files if not file.exists()]:
        number, file = missing[0]
        raise DataError(
            f"{path}:{number}: {file}: no such image ({len(missing)} of {len(files)} are missing); paths are relative "
            "to the list",
            "missing_image",
        )
    common = os.path.commonpath([os.path.abspath(file.parent) for _, file in files])
    return [(file, Path(os.path.relpath(file, common)).as_posix(), path.stem) for _, file in files]


def _unique_names(entries: Sequence[tuple[Path, str, str]]) -> list[str]:
    """The names; where some are equal, behind the name of what they were found in, or a number."""
    times = Counter(name for _, name, _ in entries)
    names = [name if times[name] == 1 else f"{root}/{name}" for _, name, root in entries]
    times = Counter(names)
    taken = {name for name in names if times[name] == 1}
    for place, name in enumerate(names):
        if times[name] > 1:
            names[place] = next(new for number in count(1) if (new := f"{number}/{name}") not in taken)
            taken.add(names[place])
    return names


def default_name(source: str) -> str:
    """What results of a source are called: the stem of a file, the name of a folder, of a glob that of its folder."""
    path = Path(source)
    if glob.has_magic(source) and not path.exists():
        path = _fixed_folder(source)
    path = path.resolve()
    return (path.name if path.is_dir() else path.stem) or "images"


def _fixed_folder(pattern: str) -> Path:
    """The folder of a glob in front of its first wildcard."""
    fixed = pattern[: next(place for place, letter in enumerate(pattern) if letter in "*?[")]
    return Path(fixed) if fixed.endswith("/") else Path(fixed).parent


def _of_coco(path: Path, images_root: Path | None) -> list[Source]:
    """The images of a COCO file, in its order, in which an evaluation reads them."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a COCO file ({error})", "sources") from None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list) or not images:
        raise DataError(f'{path}: lists no images; a COCO file has them in "images"', "empty")
    if images_root is None:
        raise DataError(f"{path}: name the folder that its file names are relative to: --images FOLDER", "sources")
    if not images_root.is_dir():
        raise DataError(f"--images {images_root}: no such folder", "missing_root")
    sources = [_coco_entry(path, place, entry, images_root) for place, entry in enumerate(images)]
    for what, values in (("id", [s.image_id for s in sources]), ("file_name", [s.name for s in sources])):
        repeated = [value for value, times in Counter(values).items() if times > 1]
        if repeated:
            raise DataError(f"{path}: images: {what} {repeated[0]!r} occurs twice; each image needs its own", "sources")
    return sources


def _coco_entry(path: Path, place: int, entry: object, images_root: Path) -> Source:
    where = f"{path}: images[{place}]"
    if not isinstance(entry, dict):
        raise DataError(f"{where}: is {entry!r}, not an object with id and file_name", "sources")
    image_id, name = entry.get("id"), entry.get("file_name")
    if not isinstance(image_id, int) or isinstance(image_id, bool):
        raise DataError(f"{where}: id {image_id!r} is not a whole number", "sources")
    if not isinstance(name, str) or not name:
        raise DataError(f"{where} (id {image_id}): file_name {name!r} is no name", "sources")
    size = entry.get("height"), entry.get("width")
    known = all(isinstance(side, int) and side > 0 for side in size)
    file = ImageFile(images_root / name, entry=f"{where} (id {image_id})")
    return Source(image_id, name, replace(file, size=size) if known else file)  # type: ignore[arg-type]
