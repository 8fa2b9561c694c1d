"""Hints for a missing path: an existing one with a similar name."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from urllib.parse import unquote

from datasets.findings import one_line
from datasets.images.folders import Folders

IMAGE_ENDINGS = frozenset(
    f".{name}"
    for name in ("jpg", "jpeg", "jpe", "jfif", "png", "tif", "tiff", "bmp", "gif", "webp", "jp2", "j2k", "ppm", "pgm")
)
MAX_LISTED = 300_000
"""Files of an images folder that are compared with the missing ones"""
_MAX_FOLDERS = 200
"""Folders beside a missing file that are looked into"""
_Steps = dict[str, Callable[[str], str]]


class NameHints:
    """Finds similar names in a folder and its subfolders, which are listed when the first file is missing.

    Two paths are alike where one is the end of the other once case, Unicode form, separators, percent encoding, blanks
    and the extension of an image are ignored.
    """

    def __init__(self, root: Path, folders: Folders) -> None:
        self._root, self._folders = root, folders
        self._steps = _steps(IMAGE_ENDINGS)
        self._by_name: dict[str, list[tuple[tuple[str, ...], str]]] | None = None

    def __call__(self, name: str) -> str | None:
        """For a path relative to the root: "sub/0.png exists: ..."; None without a similar one."""
        if self._by_name is None:
            self._by_name = defaultdict(list)
            for found in self._walk():
                parts = _simplify(found, self._steps)
                self._by_name[parts[-1]].append((parts, found))
        missing = _simplify(name, self._steps)
        alike = [found for parts, found in self._by_name.get(missing[-1], ()) if _is_end(parts, missing)]
        if not alike:
            return None
        best = min(alike, key=lambda found: (_ending(found) != _ending(name), abs(found.count("/") - name.count("/"))))
        more = f" (and {len(alike) - 1:,} more like it)" if len(alike) > 1 else ""
        return f"{one_line(best)} exists{_differences(best, name, self._steps)}{more}"

    def _walk(self) -> Iterator[str]:
        """Relative paths of all files, parents first."""
        pending, seen, count = [""], set(), 0
        while pending:
            folder = pending.pop(0)
            listing, _ = self._folders.find(self._root / folder / "any")
            if listing.place in seen:  # a link to a folder above it
                continue
            seen.add(listing.place)
            yield from (f"{folder}{name}" for name in listing.files)
            count += len(listing.files)
            if count > MAX_LISTED:
                return
            pending += (f"{folder}{name}/" for name in sorted(listing.folders))


def hint_for_path(path: Path, *, folder: bool, endings: Collection[str] = ()) -> str:
    """The same for a single file, or folder: "PATH exists: ...; ", or an empty text.

    Searches from the lowest existing folder above it, and from that folder's subfolders.
    """
    steps, above = _steps(endings), path.parent
    while not above.is_dir() and above != above.parent:
        above = above.parent
    missing = str(path.relative_to(above))
    parts = _simplify(missing, steps)
    for start in (above, *_folders_of(above)):
        for skipped in range(len(parts)):
            found = _descend(start, parts[skipped:], steps, folder=folder)
            if found is not None:
                inside = str(found.relative_to(above))
                return f"{one_line(str(found))} exists{_differences(inside, missing, steps)}; "
    return ""


def _folders_of(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if entry.is_dir())[:_MAX_FOLDERS]
    except OSError:
        return []


def _descend(start: Path, parts: tuple[str, ...], steps: _Steps, *, folder: bool) -> Path | None:
    """Follow similar names level by level to a file, or folder."""
    found = start
    for place, part in enumerate(parts):
        expects_folder = folder or place < len(parts) - 1
        try:
            alike = [name for name in sorted(os.listdir(found)) if _simplify(name, steps) == (part,)]
        except OSError:
            return None
        fitting = [found / name for name in alike if (found / name).is_dir() == expects_folder]
        if not fitting:
            return None
        found = fitting[0]
    return found


def _is_end(parts: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Whether the shorter one is the end of the longer one."""
    length = min(len(parts), len(others))
    return parts[-length:] == others[-length:]


def _steps(endings: Collection[str]) -> _Steps:
    """Differences between similar names: description -> function that removes it."""
    return {
        "percent encoding is not undone": _decode,
        "folders are separated by /": lambda path: path.replace("\\", "/"),
        "in another Unicode form": _compose,
        "names are case-sensitive": str.casefold,
        "blanks count": _strip,
        "with another extension": lambda path: _without_ending(path, endings),
    }


def _simplify(path: str, steps: _Steps, *, without: str = "") -> tuple[str, ...]:
    """Components of the path; at least one."""
    for name, step in steps.items():
        path = path if name == without else step(path)
    return tuple(part for part in path.split("/") if part not in ("", ".")) or ("",)


def _decode(path: str) -> str:
    while "%" in path and (decoded := unquote(path)) != path:
        path = decoded
    return path


def _compose(path: str) -> str:
    if path.isascii():
        return path
    composed = unicodedata.normalize("NFKC", path)
    return "".join(character for character in composed if unicodedata.category(character) != "Cf")


def _strip(path: str) -> str:
    path = re.sub(r"\s+", " ", path)
    return re.sub(r" ?([/.]) ?", r"\1", path).strip() if " " in path else path


def _ending(path: str) -> str:
    return os.path.splitext(path)[1]


def _without_ending(path: str, endings: Collection[str]) -> str:
    stem, ending = os.path.splitext(path)
    while ending in endings:
        path = stem
        stem, ending = os.path.splitext(path)
    return path


def _differences(found: str, missing: str, steps: _Steps) -> str:
    """ ": " and the differences; names that may look the same are shown as escapes."""
    reasons = []
    for name in steps:
        one, other = (_simplify(path, steps, without=name) for path in (found, missing))
        if not _is_end(one, other):
            reasons.append(name)
    if len(_simplify(found, steps)) != len(_simplify(missing, steps)):
        reasons.append("in another folder")
    if not reasons or {"in another Unicode form", "blanks count"} & set(reasons):
        reasons.append(f"{found!a} there, {missing!a} here")
    return f": {', '.join(reasons)}"
