"""Polygons of GeoJSON and GeoPackage files, without a library: the latter is an SQLite database with WKB in it.

Sources: RFC 7946; OGC 12-128 (GeoPackage), OGC 06-103 (WKB).
"""

from __future__ import annotations

import json
import sqlite3
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from datasets.errors import DataError

WGS84 = "OGC:CRS84"
"""Longitude, latitude: what GeoJSON means if it says nothing"""
SUFFIXES = (".geojson", ".json", ".gpkg")
_ENVELOPES = (0, 32, 48, 48, 64)  # bytes, by the code in a geometry's header


@dataclass(frozen=True, eq=False)
class Feature:
    """A polygon (a part of a multipolygon is one): its outer ring (P, 2), x and y, and its fields."""

    ring: np.ndarray
    fields: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Layer:
    """Polygons of a file in a coordinate reference system: a name as `EPSG:32633`, or WKT."""

    path: Path
    crs: str
    features: list[Feature]


def vector_files(source: Path) -> list[Path]:
    """GeoPackages, and JSON files that begin as GeoJSON."""
    found = [path for path in sorted(source.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    return [path for path in found if not path.name.startswith(".") and _is_vector(path)]


def read_layers(path: Path, notes: Counter[str]) -> list[Layer]:
    """Raises DataError. Counts in notes what is not a polygon."""
    return read_geopackage(path, notes) if path.suffix.lower() == ".gpkg" else [read_geojson(path, notes)]


def read_geojson(path: Path, notes: Counter[str]) -> Layer:
    """A FeatureCollection; `crs`, which older programs and QGIS write, is read. Raises DataError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        entries = list(content["features"])
        crs = ((content.get("crs") or {}).get("properties") or {}).get("name")
    except (AttributeError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as GeoJSON ({error})") from None
    found = []
    for number, entry in enumerate(entries):
        try:
            rings = list(_json_rings(entry.get("geometry"), notes))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise DataError(f"{path}: features[{number}]: its geometry cannot be read") from None
        found += [Feature(ring, entry.get("properties") or {}) for ring in rings]
    if crs is None and any(np.abs(each.ring).max() > 360 for each in found):
        raise DataError(f"{path}: coordinates are not degrees, and no crs is named; export it from QGIS as EPSG:4326")
    return Layer(path, crs or WGS84, found)


def read_geopackage(path: Path, notes: Counter[str]) -> list[Layer]:
    """Its layers of features. Raises DataError."""
    # A database that nobody writes is opened without its locks, so that no file is made beside it.
    idle = not path.with_name(f"{path.name}-wal").is_file()
    address = f"file:{quote(str(path.resolve()))}?mode=ro{'&immutable=1' if idle else ''}"
    try:
        with closing(sqlite3.connect(address, uri=True)) as database:
            database.row_factory = sqlite3.Row
            layers = database.execute(
                "SELECT g.table_name, g.column_name, s.organization, s.organization_coordsys_id AS code, s.definition "
                "FROM gpkg_geometry_columns g JOIN gpkg_contents c ON c.table_name = g.table_name "
                "LEFT JOIN gpkg_spatial_ref_sys s ON s.srs_id = g.srs_id WHERE c.data_type = 'features' "
                "ORDER BY g.table_name"
            ).fetchall()
            return [_read_table(path, database, layer, notes) for layer in layers]
    except sqlite3.Error as error:
        raise DataError(f"{path}: cannot be read as a GeoPackage ({error})") from None


def _read_table(path: Path, database: sqlite3.Connection, layer: sqlite3.Row, notes: Counter[str]) -> Layer:
    table, column = layer["table_name"], layer["column_name"]
    named = (layer["organization"] or "").upper() == "EPSG"
    crs = f"EPSG:{layer['code']}" if named else str(layer["definition"] or "")
    if crs in ("", "undefined"):
        raise DataError(f"{path}: layer {table}: has no coordinate reference system; set it in QGIS")
    found = []
    quoted = table.replace('"', '""')
    for number, row in enumerate(database.execute(f'SELECT * FROM "{quoted}"')):
        fields = {key: row[key] for key in row.keys() if key != column}  # noqa: SIM118  (a Row iterates over values)
        try:
            rings = list(_package_rings(row[column], notes))
        except (struct.error, IndexError, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{path}: layer {table}, row {number}: its geometry cannot be read ({error})") from None
        found += [Feature(ring, fields) for ring in rings]
    return Layer(path, crs, found)


def _json_rings(geometry: dict[str, Any] | None, notes: Counter[str]) -> Iterator[np.ndarray]:
    """Outer rings."""
    kind = "nothing" if geometry is None else geometry["type"]
    if geometry is not None and kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _json_rings(part, notes)
    elif geometry is not None and kind in ("Polygon", "MultiPolygon"):
        parts = [geometry["coordinates"]] if kind == "Polygon" else geometry["coordinates"]
        notes["part_of_a_multipolygon"] += len(parts) if len(parts) > 1 else 0
        for part in parts:
            if part and part[0]:
                yield np.array([point[:2] for point in part[0]], np.float64).reshape(-1, 2)
    else:
        notes[f"feature_that_is_no_polygon: {kind}"] += 1


def _package_rings(blob: bytes | None, notes: Counter[str]) -> Iterator[np.ndarray]:
    """Outer rings of a geometry of a GeoPackage: a header, then WKB. Raises what parsing does."""
    if blob is None or blob[3] & 0x10:
        notes["feature_that_is_no_polygon: nothing"] += 1
        return
    if blob[:2] != b"GP":
        raise ValueError(blob[:2])
    rings, _ = _parse_wkb(blob, 8 + _ENVELOPES[blob[3] >> 1 & 7], notes)
    yield from rings


def _parse_wkb(data: bytes, at: int, notes: Counter[str]) -> tuple[list[np.ndarray], int]:
    """Outer rings of the geometry that begins at a byte, and where it ends."""
    order = "<" if data[at] == 1 else ">"
    (code,) = struct.unpack_from(f"{order}I", data, at + 1)
    kind, at = code % 1000, at + 5
    width = {0: 2, 1: 3, 2: 3, 3: 4}[code // 1000]  # numbers of a point: also z, m or both
    if kind in (4, 5, 6, 7):
        (count,) = struct.unpack_from(f"{order}I", data, at)
        at += 4
        rings: list[np.ndarray] = []
        for _ in range(count):
            part, at = _parse_wkb(data, at, notes)
            rings += part
        notes["part_of_a_multipolygon"] += len(rings) if kind == 6 and len(rings) > 1 else 0
        return rings, at
    if kind not in (1, 2, 3):
        raise ValueError(f"a geometry of kind {kind}, such as a curve; convert it to polygons")
    if kind != 3:
        notes[f"feature_that_is_no_polygon: {('Point', 'LineString')[kind - 1]}"] += 1
        (points,) = (1,) if kind == 1 else struct.unpack_from(f"{order}I", data, at)
        return [], at + 4 * (kind == 2) + points * width * 8
    (count,) = struct.unpack_from(f"{order}I", data, at)
    at += 4
    outer = []
    for number in range(count):
        (points,) = struct.unpack_from(f"{order}I", data, at)
        values = np.frombuffer(data, f"{order}f8", points * width, at + 4)
        at += 4 + points * width * 8
        if number == 0 and points:
            outer = [values.reshape(-1, width)[:, :2].astype(np.float64)]
    return outer, at


def _is_vector(path: Path) -> bool:
    if path.suffix.lower() == ".gpkg":
        return True
    with path.open("rb") as file:
        head = file.read(4096)
    return b'"FeatureCollection"' in head
