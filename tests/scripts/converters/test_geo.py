"""Orthophotos with GeoJSON and GeoPackage vectors -> tiles and COCO."""

import re
import sqlite3
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scripts.support.raw_data import RawImage
from scripts.support.tiling import blocks
from scripts.support.vectors import read_geopackage
from tests.scripts.converters.trees import contents, draw, run, write

UTM = "EPSG:32633"
PIXEL = 0.1
"""m"""
ORIGIN = (500_000.0, 5_600_000.0)
"""Upper left corner of every raster, m"""
Box = tuple[float, float, float, float]


def raster(path: Path, size: tuple[int, int] = (300, 200), *, bands: int = 3, kind: str = "uint8", **more: Any) -> Path:
    """A GeoTIFF of (width, height) px of noise."""
    rasterio = pytest.importorskip("rasterio")
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(0).integers(1, 200, (bands, size[1], size[0])).astype(kind)
    transform = rasterio.Affine(PIXEL, 0, ORIGIN[0], 0, -PIXEL, ORIGIN[1])
    options = {"width": size[0], "height": size[1], "count": bands, "dtype": kind, "crs": UTM, "transform": transform}
    with rasterio.open(path, "w", driver="GTiff", **options | more) as data:
        data.write(values)
    return path


def ring(box: Box, crs: str = UTM) -> list[tuple[float, float]]:
    """Corners of a box in px, closed, in a reference system."""
    transform = pytest.importorskip("rasterio.warp").transform

    x0, y0, x1, y1 = box
    corners = [(x0, y0), (x0, y1), (x1, y1), (x1, y0), (x0, y0)]
    x, y = transform(UTM, crs, *zip(*[(ORIGIN[0] + x * PIXEL, ORIGIN[1] - y * PIXEL) for x, y in corners], strict=True))
    return list(zip(x, y, strict=True))


def feature(box: Box, crs: str = "OGC:CRS84", **fields: object) -> dict[str, Any]:
    return {"type": "Feature", "properties": fields, "geometry": {"type": "Polygon", "coordinates": [ring(box, crs)]}}


def collection(path: Path, features: list[dict[str, Any]], crs: str | None = None) -> Path:
    named = {} if crs is None else {"crs": {"type": "name", "properties": {"name": crs}}}
    return write(path, {"type": "FeatureCollection", "features": features} | named)


def wkb(kind: int, parts: list[list[tuple[float, float]]], order: str = "<", z: bool = False) -> bytes:
    """Of a polygon of rings (3), or of a multipolygon of polygons of one ring (6)."""
    head = struct.pack(f"{order}BII", order == "<", kind + 1000 * z, len(parts))
    if kind == 6:
        return head + b"".join(wkb(3, [part], order, z) for part in parts)
    rings = [struct.pack(f"{order}I", len(p)) + b"".join(_point(xy, order, z) for xy in p) for p in parts]
    return head + b"".join(rings)


def _point(xy: tuple[float, float], order: str, z: bool) -> bytes:
    return struct.pack(f"{order}{2 + z}d", *xy, *([9.0] * z))


def package(path: Path, layers: dict[str, tuple[str, list[tuple[bytes | None, str | None]]]]) -> Path:
    """A GeoPackage of layers: name -> reference system, and rows of geometry and `Kind`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE gpkg_contents (table_name, data_type)")
        database.execute("CREATE TABLE gpkg_geometry_columns (table_name, column_name, srs_id)")
        database.execute(
            "CREATE TABLE gpkg_spatial_ref_sys (srs_id, organization, organization_coordsys_id, definition)"
        )
        for number, (name, (crs, rows)) in enumerate(layers.items()):
            database.execute("INSERT INTO gpkg_contents VALUES (?, 'features')", (name,))
            database.execute("INSERT INTO gpkg_geometry_columns VALUES (?, 'geom', ?)", (name, number))
            epsg = crs.startswith("EPSG:")
            row = (number, "EPSG" if epsg else "NONE", int(crs[5:]) if epsg else number, "undefined" if epsg else crs)
            database.execute("INSERT INTO gpkg_spatial_ref_sys VALUES (?, ?, ?, ?)", row)
            quoted = name.replace('"', '""')
            database.execute(f'CREATE TABLE "{quoted}" (fid INTEGER, geom BLOB, Kind TEXT)')
            database.executemany(f'INSERT INTO "{quoted}" VALUES (1, ?, ?)', rows)
    database.close()
    return path


def blob(geometry: bytes, envelope: int = 0) -> bytes:
    """A GeoPackage's header, with an envelope of a code, and a geometry."""
    return (
        b"GP\0" + bytes([1 | envelope << 1]) + struct.pack("<i", 4326) + bytes((0, 32, 48, 48, 64)[envelope]) + geometry
    )


def tree(root: Path) -> None:
    """A GeoJSON in degrees with class_name, a GeoPackage in metres, both for both rasters; other geometries."""
    raster(root / "train" / "west.tif")
    raster(root / "val" / "west.tif")
    features = [
        feature((10, 12, 20, 26), class_name="car"),
        feature((290, 190, 310, 199), class_name="car"),
        feature((2000, 12, 2010, 26), class_name="car"),
        feature((30, 30, 40, 40), class_name=None),
        feature((50, 50, 50, 60), class_name="bus"),
        {"type": "Feature", "properties": {}, "geometry": {"type": "Point", "coordinates": [15, 50]}},
        {"type": "Feature", "properties": {}, "geometry": None},
    ]
    collection(root / "objects.geojson", features)


def test_degrees(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    tree(tmp_path / "any")
    manifest = run("auto", tmp_path / "any", tmp_path / "out", "--tile", 200, "--overlap", 0)
    assert contents(tmp_path / "out", "val") == {
        "west__0_0.png": [("car", [10, 12, 10, 14], 0)],
        "west__100_0.png": [("car", [190, 190, 10, 9], 1)],
    }
    with rasterio.open(tmp_path / "any" / "val" / "west.tif") as data:
        expected = data.read(window=((0, 200), (100, 300))).transpose(1, 2, 0)
    with Image.open(tmp_path / "out" / "val" / "west__100_0.png") as tile:
        assert np.array_equal(np.asarray(tile), expected)
    assert manifest["fixed_or_dropped"] == {
        "box_without_area": 2,
        "feature_outside_the_rasters": 1,
        "feature_that_is_no_polygon: Point": 1,
        "feature_that_is_no_polygon: nothing": 1,
        "feature_without_a_class": 2,
        "object_cut_by_tile_ignored": 2,
        "tile_without_objects_dropped": 1,
    }
    assert manifest["classes"] == ["bus", "car"]
    assert manifest["remarks"][0].startswith("classes are the values of class_name")


def test_a_geopackage(tmp_path: Path) -> None:
    """Layers in two reference systems, both byte orders, heights, envelopes, a hole, a multipolygon, WKT."""
    rasterio = pytest.importorskip("rasterio")
    raster(tmp_path / "any" / "ortho.tif", (600, 400))
    hole = [ring((10, 12, 20, 26)), ring((12, 14, 15, 20))]
    two = [ring((30, 30, 40, 40)), ring((300, 300, 310, 320))]
    wkt = rasterio.crs.CRS.from_epsg(25833).to_wkt()
    layers = {
        "first": (UTM, [(blob(wkb(3, hole), 1), "car"), (blob(wkb(6, two, ">")), "bus"), (None, "car")]),
        'the "second"': (wkt, [(blob(wkb(3, [ring((500, 100, 520, 110), "EPSG:25833")], z=True), 2), "car")]),
        "degrees": ("EPSG:4326", [(blob(wkb(3, [ring((100, 350, 120, 360), "EPSG:4326")]), 4), "car")]),
    }
    path = package(tmp_path / "any" / "labels.gpkg", layers)
    before = sorted(path.parent.iterdir())
    more = ("--tile", 400, "--overlap", 0, "--class-field", "Kind", "--classes", "car,bus", "--val-share", 0.3)
    manifest = run("auto", tmp_path / "any", tmp_path / "out", *more)
    assert sorted(path.parent.iterdir()) == before
    notes: Counter[str] = Counter()
    read = read_geopackage(path, notes)
    assert [len(layer.features) for layer in read] == [1, 3, 1]
    assert notes == {"feature_that_is_no_polygon: nothing": 1, "part_of_a_multipolygon": 2}
    assert manifest["classes"] == ["car", "bus"]
    assert manifest["fixed_or_dropped"]["part_of_a_multipolygon"] == 2
    total = Counter[str]()
    for split in ("train", "val"):
        total.update(manifest["splits"][split]["per_class"])
        assert manifest["splits"][split]["objects"] > 0
    assert total == {"car": 3, "bus": 2}


def test_blocks_share_no_pixel_and_hold_equal_numbers(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    corners = random.uniform(0, 400, (300, 2)) ** 2 / 400 * [2.5, 1]  # most in a corner
    image = RawImage.of_rows(tmp_path, "a/b.tif", [([x, y, x + 4, y + 4], 0, False) for x, y in corners])
    parts = blocks(image, (400, 1000), number=8, least=50)
    cover = np.zeros((400, 1000), int)
    counts = []
    for part in parts:
        assert part.window is not None
        left, top, right, bottom = part.window
        assert min(right - left, bottom - top) >= 50
        cover[top:bottom, left:right] += 1
        assert part.name == f"a/b__{left}_{top}.tif"
        counts.append(len(part.boxes))
    assert (cover == 1).all()
    assert len(parts) == 8
    assert sum(counts) >= 300
    assert max(counts) < 4 * 300 / 8
    assert len(blocks(image, (90, 90), number=8, least=50)) == 1


def test_crs_member_stems_and_values(tmp_path: Path) -> None:
    """An old crs, vectors that belong to one raster by name, 16 bits, four bands, no data, a preview."""
    rasterio = pytest.importorskip("rasterio")
    root = tmp_path / "any"
    for name in ("train_a", "test_b"):
        raster(root / f"{name}.tif", bands=4, kind="uint16", nodata=0)
    with rasterio.open(root / "test_b.tif", "r+") as data:
        values = data.read()
        values[:, :, 150:] = 0
        data.write(values)
    draw(root / "preview.jpg")
    collection(root / "train_a.geojson", [feature((10, 12, 20, 26), UTM, Art=3.0)], "urn:ogc:def:crs:EPSG::32633")
    collection(root / "other.geojson", [feature((30, 30, 40, 40), UTM, Art=4)], "EPSG:32633")
    more = ("--class-field", "Art", "--bands", "4,2,1", "--tile", 150, "--overlap", 0)
    manifest = run("geo", root, tmp_path / "out", *more, "--stretch", "0,255")
    assert manifest["classes"] == ["3", "4"]
    assert contents(tmp_path / "out", "train")["train_a__0_0.png"] == [("3", [10, 12, 10, 14], 0)]
    assert sorted(contents(tmp_path / "out", "test")) == ["test_b__0_0.png", "test_b__0_50.png"]
    with rasterio.open(root / "train_a.tif") as data:
        expected = data.read([4, 2, 1], window=((0, 150), (0, 150))).transpose(1, 2, 0)
    with Image.open(tmp_path / "out" / "train" / "train_a__0_0.png") as tile:
        assert np.array_equal(np.asarray(tile), expected)
    notes = manifest["fixed_or_dropped"]
    assert (notes["image_without_a_place_on_the_map"], notes["tile_without_data"]) == (1, 2)
    run("geo", root, tmp_path / "refused", *more, code=3)
    assert not (tmp_path / "refused").exists()


def test_one_class_without_a_field_and_images_elsewhere(tmp_path: Path) -> None:
    raster(tmp_path / "rasters" / "a.tif")
    collection(tmp_path / "vectors" / "a.geojson", [feature((10, 12, 20, 26)), feature((280, 180, 290, 190))])
    more = ("--images", tmp_path / "rasters", "--tile", 100, "--overlap", 0)
    manifest = run("geo", tmp_path / "vectors", tmp_path / "out", *more, "--classes", "tree")
    assert manifest["classes"] == ["tree"]
    assert run("geo", tmp_path / "vectors", tmp_path / "unnamed", *more)["classes"] == ["object"]


def not_a_database(root: Path) -> None:
    (root / "objects.geojson").unlink()
    write(root / "objects.gpkg", "no database")


def without_a_system(root: Path) -> None:
    package(root / "more.gpkg", {"trees": ("", [(blob(wkb(3, [ring((1, 1, 9, 9))])), "car")])})


def curve(root: Path) -> None:
    package(root / "more.gpkg", {"trees": (UTM, [(blob(struct.pack("<BII", 1, 10, 1)), "car")])})


def cut_short(root: Path) -> None:
    package(root / "more.gpkg", {"trees": (UTM, [(blob(wkb(3, [ring((1, 1, 9, 9))]))[:-9], "car")])})


def metres(root: Path) -> None:
    collection(root / "more.geojson", [feature((1, 1, 9, 9), UTM)])


def no_place(root: Path) -> None:
    for path in root.rglob("*.tif"):
        path.unlink()
    draw(root / "a.png")


@pytest.mark.parametrize(
    ("change", "more", "code", "message"),
    [
        (not_a_database, (), 3, r"objects\.gpkg: cannot be read as a GeoPackage \(file is not a database\)"),
        (without_a_system, (), 3, r"layer trees: has no coordinate reference system; set it in QGIS"),
        (curve, (), 3, r"layer trees, row 0: its geometry cannot be read \(.*a curve; convert it to polygons"),
        (cut_short, (), 3, r"layer trees, row 0: its geometry cannot be read"),
        (metres, (), 3, r"more\.geojson: coordinates are not degrees, and no crs is named"),
        (no_place, (), 3, r"a\.png: has no reference system or no place in it"),
        (lambda r: write(r / "b.geojson", '{"type": "FeatureCollection", '), (), 3, r"b\.geojson: cannot be read"),
        (lambda r: None, ("--class-field", "art"), 3, r"--class-field art: the fields are class_name"),
        (lambda r: None, ("--bands", "1,2"), 2, r"--bands 1,2: give three numbers"),
        (lambda r: None, ("--bands", "1,2,7"), 3, r"west\.tif: --bands 1,2,7: it has 3 bands"),
        (lambda r: None, ("--empty-share", 2), 2, r"--empty-share 2 is not in 0\.\.1"),
        (lambda r: None, ("--images", "nowhere"), 2, r"--images nowhere: no such folder"),
    ],
)
def test_faults(
    change: Any, more: tuple[object, ...], code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree(tmp_path / "any")
    change(tmp_path / "any")
    run("geo", tmp_path / "any", tmp_path / "out", *more, code=code)
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_a_broken_raster(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path / "any")
    write(tmp_path / "any" / "train" / "east.tif", "no raster")
    run("geo", tmp_path / "any", tmp_path / "out", code=3)
    assert re.search(r"east\.tif: cannot be opened as a raster .*; --skip-bad drops it", capsys.readouterr().err)
    manifest = run("geo", tmp_path / "any", tmp_path / "out", "--skip-bad")
    assert manifest["fixed_or_dropped"]["unreadable_image"] == 1


def test_rasters_that_are_all_called_val_are_divided(tmp_path: Path) -> None:
    """As the results of a prediction on a validation split."""
    for number in range(6):
        raster(tmp_path / "tree" / f"val_{number}.tif")
        collection(tmp_path / "tree" / f"val_{number}.geojson", [feature((20, 20, 40, 50))])
    manifest = run("geo", tmp_path / "tree", tmp_path / "out", "--small")
    assert {name: each["images"] for name, each in manifest["splits"].items()} == {"train": 5, "val": 1}


def test_options_of_geo_are_refused_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "any" / "obj.names", "car")
    run("yolo", tmp_path / "any", tmp_path / "out", "--class-field", "x", code=2)
    assert "--class-field: only geo has it, this is yolo" in capsys.readouterr().err


def test_without_rasterio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path / "any")
    monkeypatch.setattr("scripts.converters.geo.has_rasterio", lambda: False)
    run("auto", tmp_path / "any", tmp_path / "out", code=2)
    assert "orthophotos need rasterio: pip install -e '.[geo]'" in capsys.readouterr().err
