"""What stands beside YOLO labels: class names and splits, in data.yaml (ultralytics, Roboflow) or darknet's files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from datasets.errors import DataError
from scripts.support.raw_data import ImageIndex, images_below, split_of


@dataclass(frozen=True)
class Description:
    """What data.yaml, obj.data or a list of names say.

    names      of the classes, in the order of the labels
    splits     images by split; none: by folders and lists
    keypoints  label lines end with the numbers of keypoints
    """

    names: tuple[str, ...]
    splits: dict[str, list[Path]] = field(default_factory=dict)
    keypoints: bool = False


def find_descriptions(source: Path) -> list[Path]:
    """data.yaml or another YAML file with `names`; else all darknet files such as obj.data."""
    for path in [*sorted(source.glob("*.y*ml")), *sorted(source.glob("*/*.y*ml"))]:
        content = _read_yaml(path)
        if isinstance(content, dict) and isinstance(content.get("names"), list | dict):
            return [path]
    return [path for path in sorted(source.rglob("[!.]*.data")) if "names" in _read_pairs(path)]


def read_descriptions(source: Path, paths: list[Path], index: ImageIndex, notes: Counter[str]) -> Description:
    """Of exports side by side (train/obj.data, val/obj.data), the folder says the split. Raises DataError."""
    found = [read_description(path, index, notes) for path in paths]
    if not found:
        return Description(())
    splits: dict[str, list[Path]] = {}
    for path, each in zip(paths, found, strict=True):
        if each.names != found[0].names:
            raise DataError(f"{path}: names {', '.join(each.names)}, but {paths[0]} {', '.join(found[0].names)}")
        folders = path.relative_to(source).parts[:-1]
        of_folder = next((split for folder in folders if (split := split_of(folder))), None)
        for split, images in each.splits.items():
            splits.setdefault(of_folder if of_folder and len(paths) > 1 else split, []).extend(images)
    return Description(found[0].names, splits, found[0].keypoints)


def read_description(path: Path, index: ImageIndex, notes: Counter[str]) -> Description:
    """Class names, and the images of each split. Raises DataError."""
    content: dict[str, Any]
    if path.suffix == ".data":
        content, root = _read_pairs(path), path.parent
        file = _resolve(root, root, content["names"])
        if file is None or not file.is_file():
            raise DataError(f"{path}: names = {content['names']}: no such file below {root}")
        names: Any = read_lines(file)
    else:
        content = _read_yaml(path)
        names, root = content["names"], Path(str(content.get("path") or ""))
        root = root if root.is_absolute() and root.is_dir() else path.parent / root
        root = root if root.is_dir() else path.parent
    splits: dict[str, list[Path]] = {}
    for key in ("train", "val", "valid", "test"):
        split, entries = split_of(key), content.get(key) or []
        assert split is not None
        for entry in [entries] if isinstance(entries, str) else entries:
            place = _resolve(root, path.parent, str(entry))
            if place is not None:
                splits.setdefault(split, []).extend(images_of(place, index, notes))
            elif split == "train" and path.suffix != ".data":
                raise DataError(f"{path}: {key}: {entry}: no such folder or list below {path.parent}")
            else:
                notes[f"missing_{split}_split"] += 1
    return Description(_ordered(names, path), splits, bool(content.get("kpt_shape")))


def _ordered(names: Any, path: Path) -> tuple[str, ...]:
    """By their number, which a YAML file may give as text; a number without a name gets one. Raises DataError."""
    try:
        by_id = {int(key): str(name) for key, name in (names.items() if isinstance(names, dict) else enumerate(names))}
    except ValueError:
        raise DataError(f"{path}: names: {sorted(map(str, names))[:3]} are not the numbers of classes") from None
    if any(key < 0 or key > 9999 for key in by_id):
        raise DataError(f"{path}: names: {min(by_id)} to {max(by_id)} are not the numbers of classes, from 0")
    return tuple(by_id.get(number, f"class_{number}") for number in range(max(by_id, default=-1) + 1))


def names_beside(source: Path) -> tuple[str, ...]:
    """Of obj.names, classes.txt or another list of names."""
    for path in [*sorted(source.rglob("[!.]*.names")), *sorted(source.rglob("classes.txt"))]:
        return tuple(read_lines(path))
    return ()


def images_of(place: Path, index: ImageIndex, notes: Counter[str]) -> list[Path]:
    """Of a folder, or of a list of paths as another machine wrote them."""
    if place.is_dir():
        return images_below(place)
    found = [index.find(line) for line in read_lines(place)]
    notes["listed_image_missing"] += sum(image is None for image in found)
    return [image for image in found if image is not None]


def _resolve(root: Path, beside: Path, entry: str) -> Path | None:
    """A path of a data.yaml or obj.data: below its root, beside it, absolute, or with folders too many in front."""
    parts = [part for part in Path(entry).parts if part not in ("..", ".", "/")]
    # A folder in front may be one too many, unless it says the split: valid/images is not images.
    start = next((i for i, part in enumerate(parts) if split_of(Path(part).stem)), len(parts) - 1)
    tries: Iterable[Path] = [
        root / entry,
        beside / entry,
        *(base.joinpath(*parts[i:]) for i in range(start + 1) for base in (root, beside)),
    ]
    return next((path for path in tries if path.exists()), None)


def _read_pairs(path: Path) -> dict[str, str]:
    """Lines such as `train = data/train.txt` of a darknet file."""
    pairs = (line.partition("=")[::2] for line in read_lines(path, errors="replace") if "=" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def read_lines(path: Path, *, errors: str = "strict") -> list[str]:
    """Without blank ones. Raises DataError."""
    try:
        text = path.read_text(encoding="utf-8-sig", errors=errors)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 ({error.reason}); save it as UTF-8") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError):
        return None
