"""Folders of images, each listed once, instead of a system call per file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Listing:
    """A folder.

    place    its real path; empty if the folder does not exist
    device   of its file system
    files    names of its files, links to files among them -> number on the device (of a link: its own)
    links    names of its links
    folders  names of its folders, links to folders among them
    """

    place: str
    device: int
    files: dict[str, int]
    links: frozenset[str]
    folders: frozenset[str]

    def real_path(self, name: str) -> str:
        path = os.path.join(self.place, name)
        return os.path.realpath(path) if name in self.links else path


class Folders:
    """Listings by folder, each made on first use."""

    def __init__(self) -> None:
        self._listings: dict[str, Listing] = {}

    def find(self, path: Path) -> tuple[Listing, str]:
        """Listing of a file's folder, and the file's name there."""
        folder, name = os.path.split(path)
        listing = self._listings.get(folder)
        if listing is None:
            listing = self._listings[folder] = _list(folder or ".")
        return listing, name


def _list(folder: str) -> Listing:
    try:
        with os.scandir(folder) as found:
            entries = list(found)
        device = os.stat(folder).st_dev
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return Listing("", 0, {}, frozenset(), frozenset())
    return Listing(
        place=os.path.realpath(folder),
        device=device,
        files={entry.name: entry.inode() for entry in entries if entry.is_file()},
        links=frozenset(entry.name for entry in entries if entry.is_symlink()),
        folders=frozenset(entry.name for entry in entries if entry.is_dir()),
    )
