"""DIOR: VOC XML in `Annotations/Horizontal Bounding Boxes`, JPEGImages-trainval and JPEGImages-test, pixels from 1."""

from __future__ import annotations

from pathlib import Path

from datasets.errors import DataError
from scripts.converters import voc
from scripts.support.raw_data import ConvertOptions, RawData

HORIZONTAL = "horizontal bounding boxes"
IMAGES = ("jpegimages-trainval", "jpegimages-test")


def convert(source: Path, options: ConvertOptions) -> RawData:
    """Raises DataError."""
    if not voc.xml_files(source) and any(folder.name.lower() == voc.ORIENTED for folder in _folders(source)):
        raise DataError(f"{source}: has oriented boxes only; fetch DIOR's Horizontal Bounding Boxes")
    return voc.convert(source, options)


def recognise(source: Path) -> str | None:
    """Why the tree looks like this kind; None if it does not."""
    names = {folder.name.lower(): folder for folder in _folders(source)}
    known = next((names[name] for name in (HORIZONTAL, voc.ORIENTED, *IMAGES) if name in names), None)
    return f"folder {known.relative_to(source)}" if known else None


def _folders(source: Path) -> list[Path]:
    return sorted(path for pattern in ("*", "*/*", "*/*/*") for path in source.glob(pattern) if path.is_dir())
