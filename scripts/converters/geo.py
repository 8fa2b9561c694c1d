"""Orthophotos with polygons from QGIS: GeoTIFF and other rasters, GeoJSON and GeoPackage in any reference system.

Needs rasterio (extra `geo`). Rasters are cut into tiles. A vector file with the name of a raster belongs to it, others
to all. Where there are few rasters, each becomes blocks with about as many objects, which a split keeps whole.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import DataError
from datasets.images.rasters import GEO_EXTRA, MissingExtraError
from datasets.images.windowed import has_rasterio, read_tiff_header
from scripts.support.raw_data import (
    ConvertOptions,
    RawData,
    RawImage,
    choose_classes,
    images_below,
    sound_box,
    split_of,
    unique_names,
)
from scripts.support.tiling import blocks
from scripts.support.vectors import Feature, Layer, read_layers, vector_files

CLASS_FIELDS = ("class_name", "class", "label", "category", "name", "type", "species")
"""Tried in turn, in any case; the first is that of predictions.geojson"""
ONE_CLASS = "object"
TILE = {True: 512, False: 1024}
"""Default side of the tiles with --small and without, px"""
EMPTY_SHARE = 0.1
"""Default share of the tiles without objects that is kept"""
FEW = 5
"""Fewer rasters than this are divided into blocks"""
BLOCKS = 16
"""Of all rasters"""
_MORE_RASTERS = (".vrt", ".img")


@dataclass(frozen=True, eq=False)
class _Raster:
    """transform: (x, y, 1) of the reference system -> px, (2, 3); size: (height, width) px."""

    path: Path
    crs: Any
    transform: np.ndarray
    size: tuple[int, int]


def convert(source: Path, options: ConvertOptions) -> RawData:
    """Raises DataError, and MissingExtraError without rasterio."""
    if not has_rasterio():
        raise MissingExtraError(f"orthophotos need rasterio: {GEO_EXTRA}")
    notes: Counter[str] = Counter()
    root = options.images or source
    rasters = open_rasters(root, notes, skip=options.skip_bad)
    layers = [layer for path in vector_files(source) for layer in read_layers(path, notes)]
    if not rasters or not layers:
        lacking = "georeferenced raster" if not rasters else "GeoJSON or GeoPackage"
        raise DataError(f"{source}: holds no {lacking}; with rasters in another folder give --images FOLDER")
    field, remark = _class_field(layers, options)
    named = sorted({name for layer in layers for each in layer.features if (name := _class_of(each, field))})
    if field is None:
        named = [options.classes[0] if options.classes else ONE_CLASS]
    classes = choose_classes(named, options.classes, source)
    outside = {id(each) for layer in layers for each in layer.features}
    splits: dict[str, list[RawImage]] = {}
    stems = {raster.path.stem for raster in rasters}
    for split, members in _by_split(rasters, root).items():
        titles = unique_names([raster.path for raster in members], root)
        for raster, title in zip(members, titles, strict=True):
            own = [layer for layer in layers if layer.path.stem == raster.path.stem]
            shared = [layer for layer in layers if layer.path.stem not in stems]
            image = _read(raster, title, own or shared, classes, field, outside, notes)
            notes["raster_without_features"] += image is None
            splits.setdefault(split, []).extend([] if image is None else [image])
    notes["feature_outside_the_rasters"] += len(outside)
    remarks = [remark]
    if set(splits) == {"train"} and 0 < len(splits["train"]) < FEW:
        splits = {"train": _divide(splits["train"], rasters, options.tile or TILE[False])}
        remarks.append(f"each raster is divided into blocks, {len(splits['train'])} in all, for the validation split")
    return RawData(classes, splits, +notes, remarks)


def recognise(source: Path) -> str | None:
    """Why the tree looks like this kind; None if it does not."""
    vectors = vector_files(source)
    placed = next((path for path in raster_files(source) if _is_placed(path)), None) if vectors else None
    return f"{placed.name} is georeferenced, {vectors[0].name} has vectors" if placed else None


def raster_files(source: Path) -> list[Path]:
    more = [path for path in source.rglob("*") if path.suffix.lower() in _MORE_RASTERS and path.is_file()]
    return sorted([*(path for path in images_below(source)), *more])


def _is_placed(path: Path) -> bool:
    header = read_tiff_header(path)
    return path.suffix.lower() in _MORE_RASTERS or (header is not None and header.georeferenced)


def open_rasters(source: Path, notes: Counter[str], *, skip: bool) -> list[_Raster]:
    """Those that have a place on the map. Raises DataError if none of the images has, and for a broken one."""
    files, found = raster_files(source), list[_Raster]()
    for path in list(files):
        try:
            found += [raster] if (raster := _open(path)) is not None else []
        except DataError as error:
            if not skip:
                raise DataError(f"{error.summary()}; --skip-bad drops it") from None
            notes["unreadable_image"] += 1
            files.remove(path)
    if files and not found:
        raise DataError(f"{files[0]}: has no reference system or no place in it; georeference it in QGIS")
    notes["image_without_a_place_on_the_map"] += len(files) - len(found)
    return found


def _open(path: Path) -> _Raster | None:
    """Raises DataError."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path) as data:
                crs, transform, size = data.crs, data.transform, data.shape
    except rasterio.RasterioIOError as error:
        raise DataError(f"{path}: cannot be opened as a raster ({error})") from None
    if crs is None or transform.is_identity:
        return None
    return _Raster(path, crs, np.array(tuple(~transform)[:6]).reshape(2, 3), size)


def _by_split(rasters: list[_Raster], root: Path) -> dict[str, list[_Raster]]:
    """By the names of folders, or of the rasters themselves; names that leave nothing to train on mean no split."""
    found: dict[str, list[_Raster]] = {}
    for raster in rasters:
        words = (*raster.path.relative_to(root).parts[:-1], raster.path.stem)
        found.setdefault(next((s for word in words if (s := split_of(word))), "train"), []).append(raster)
    return found if "train" in found else {"train": rasters}


def _class_field(layers: list[Layer], options: ConvertOptions) -> tuple[str | None, str]:
    """The field that names classes, and what to say about it. Raises DataError."""
    names = list(dict.fromkeys(name for layer in layers for each in layer.features for name in each.fields))
    if options.class_field is not None:
        if options.class_field not in names:
            raise DataError(f"--class-field {options.class_field}: the fields are {', '.join(names) or 'none'}")
        return options.class_field, f"classes are the values of {options.class_field}"
    lower = {name.lower(): name for name in reversed(names)}
    field = next((lower[name] for name in CLASS_FIELDS if name in lower), None)
    if field is not None:
        return field, f"classes are the values of {field}; --class-field chooses another"
    return None, f"one class, as no field names more; --class-field chooses from {', '.join(names) or 'none'}"


def _class_of(feature: Feature, field: str | None) -> str | None:
    """None without a field, or where it has no value."""
    value = None if field is None else feature.fields.get(field)
    whole = isinstance(value, float) and value.is_integer()
    return (str(int(value)) if whole else str(value).strip()) if value not in (None, "") else None


def _read(
    raster: _Raster,
    title: str,
    layers: list[Layer],
    classes: tuple[str, ...],
    field: str | None,
    outside: set[int],
    notes: Counter[str],
) -> RawImage | None:
    """None if no feature touches the raster; those that do are taken out of `outside`."""
    height, width = raster.size
    rows, touched = [], False
    for layer in layers:
        for each, box in zip(layer.features, _boxes(raster, layer), strict=True):
            if not (box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0):
                continue
            touched = True
            outside.discard(id(each))
            name = classes[0] if field is None else _class_of(each, field)
            if name not in classes:
                notes["feature_without_a_class" if name is None else f"class_not_chosen: {name}"] += 1
            elif sound_box(box, notes):
                rows.append((box, classes.index(name), False))
    return RawImage.of_rows(raster.path, title, rows) if touched else None


def _boxes(raster: _Raster, layer: Layer) -> list[list[float]]:
    """xyxy px of the layer's features. Raises DataError for an unknown reference system."""
    from rasterio.errors import CRSError
    from rasterio.warp import transform

    if not layer.features:
        return []
    points = np.concatenate([each.ring for each in layer.features])
    try:
        x, y = transform(layer.crs, raster.crs, points[:, 0].tolist(), points[:, 1].tolist())[:2]
    except CRSError as error:
        raise DataError(f"{layer.path}: reference system {layer.crs[:60]!r}: {error}") from None
    placed = np.stack([np.asarray(x), np.asarray(y), np.ones(len(x))])
    pixels = (raster.transform @ placed).T
    ends = np.cumsum([len(each.ring) for each in layer.features])[:-1]
    rings = np.split(pixels, ends)
    return [[*ring.min(axis=0).tolist(), *ring.max(axis=0).tolist()] for ring in rings]


def _divide(images: list[RawImage], rasters: list[_Raster], tile: int) -> list[RawImage]:
    sizes = {raster.path: raster.size for raster in rasters}
    number = -(-BLOCKS // len(images))
    return [block for image in images for block in blocks(image, sizes[image.file], number=number, least=tile // 2)]
