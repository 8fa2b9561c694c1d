"""Rasters: windows, bands, depth, no data, place; without rasterio: what is said. GeoTIFFs are written here."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.images import windowed
from datasets.images.decode import ImageFile
from datasets.images.rasters import DecodedImage, MissingExtraError, Raster, RasterOptions, open_raster
from datasets.structures import DataError

GEO = pytest.mark.skipif(not windowed.has_rasterio(), reason="the extra geo (rasterio) is not installed")
PLACE = (0.5, 0.0, 400_000.0, 0.0, -0.5, 5_800_000.0)
rng = np.random.default_rng(0)
RGB = rng.integers(0, 255, (3, 40, 60), dtype=np.uint8)


def write(path: Path, values: np.ndarray, *, crs: str | None = "EPSG:32633", **options: Any) -> Path:
    """A GeoTIFF of (bands, height, width) values."""
    import rasterio
    from rasterio.transform import Affine

    bands, height, width = values.shape
    profile = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": values.dtype} | options
    if crs is not None:
        profile = {"transform": Affine(*PLACE)} | profile | {"crs": crs}
    tags = profile.pop("tags", {})
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)
        file.update_tags(**tags)
    return path


def opened(path: Path, **options: Any) -> Raster:
    return open_raster(ImageFile(path), RasterOptions(**({"max_pixels": 10**6} | options)))


def pixels(image: Image.Image | None) -> np.ndarray:
    assert image is not None
    return np.asarray(image)


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_an_ordinary_image_is_decoded_as_in_training(tmp_path: Path, name: str) -> None:
    Image.fromarray(RGB.transpose(1, 2, 0)).save(tmp_path / name)
    raster = opened(tmp_path / name)
    assert isinstance(raster, DecodedImage)
    assert (raster.width, raster.height, raster.georeference, raster.turned) == (60, 40, None, False)
    assert np.array_equal(pixels(raster.read((10, 5, 30, 25))), RGB[:, 5:25, 10:30].transpose(1, 2, 0))
    assert raster.overview(30).size == (30, 20)


@GEO
def test_a_geotiff_is_read_in_windows_and_has_a_place(tmp_path: Path) -> None:
    raster = opened(write(tmp_path / "x.tif", RGB), max_pixels=10)  # no limit in windows
    assert isinstance(raster, windowed.WindowedRaster)
    assert (raster.width, raster.height) == (60, 40)
    assert raster.georeference is not None
    assert (raster.georeference.crs, raster.georeference.transform) == ("EPSG:32633", PLACE)
    assert np.array_equal(pixels(raster.read((10, 5, 30, 25))), RGB[:, 5:25, 10:30].transpose(1, 2, 0))
    assert raster.overview(30).size == (30, 20)


@GEO
def test_pixel_is_point_is_half_a_pixel_off_and_corrected(tmp_path: Path) -> None:
    """The tie point of PixelIsPoint is the centre of the first pixel."""
    write(tmp_path / "area.tif", RGB, tags={"AREA_OR_POINT": "Area"})
    write(tmp_path / "point.tif", RGB, tags={"AREA_OR_POINT": "Point"})
    ties = {}
    for name in ("area", "point"):
        with Image.open(tmp_path / f"{name}.tif") as image:
            ties[name] = image.tag_v2[33922][3:5]  # as the file says
        raster = opened(tmp_path / f"{name}.tif")
        assert raster.georeference is not None
        assert raster.georeference.transform == PLACE
    assert ties["area"] == (400_000.0, 5_800_000.0)
    assert ties["point"] == (400_000.25, 5_799_999.75)


@GEO
def test_tiles_without_data_are_none(tmp_path: Path) -> None:
    values = RGB.copy()
    values[:, :, :30] = 0
    raster = opened(write(tmp_path / "x.tif", values, nodata=0))
    assert raster.read((0, 0, 20, 20)) is None
    assert raster.read((20, 0, 40, 20)) is not None


@GEO
def test_alpha_is_no_colour_and_marks_what_has_no_data(tmp_path: Path) -> None:
    values = np.concatenate([RGB, np.full((1, 40, 60), 255, np.uint8)])
    values[3, :, 30:] = 0
    raster = opened(write(tmp_path / "x.tif", values, photometric="RGB", alpha="YES"))
    assert pixels(raster.read((0, 0, 20, 20))).shape == (20, 20, 3)
    assert raster.read((40, 0, 60, 20)) is None


@GEO
def test_grey_and_palette_become_rgb(tmp_path: Path) -> None:
    grey = opened(write(tmp_path / "grey.tif", RGB[:1]))
    assert np.array_equal(pixels(grey.read((0, 0, 60, 40)))[..., 2], RGB[0])
    path = write(tmp_path / "palette.tif", RGB[:1] % 3, photometric="palette")
    import rasterio

    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (1, 2, 3, 255), 1: (40, 50, 60, 255), 2: (7, 8, 9, 255)})
    found = pixels(opened(path).read((0, 0, 60, 40)))
    assert {tuple(colour) for colour in found.reshape(-1, 3).tolist()} == {(1, 2, 3), (40, 50, 60), (7, 8, 9)}


@GEO
def test_bands_are_chosen_in_their_order(tmp_path: Path) -> None:
    values = np.stack([np.full((40, 60), 10 * band, np.uint8) for band in range(1, 9)])
    path = write(tmp_path / "x.tif", values)
    with pytest.raises(DataError, match=r"x\.tif: has 8 bands; name red, green and blue: --bands 1,2,3"):
        opened(path)
    assert pixels(opened(path, bands=(5, 3, 2)).read((0, 0, 8, 8)))[0, 0].tolist() == [50, 30, 20]
    with pytest.raises(DataError, match=r"--bands 1,2,9: it has 8 bands"):
        opened(path, bands=(1, 2, 9))


@GEO
def test_values_beyond_8_bits_need_a_stretch(tmp_path: Path) -> None:
    values = np.linspace(1000, 3000, 3 * 40 * 60).reshape(3, 40, 60).astype(np.uint16)
    path = write(tmp_path / "x.tif", values)
    with pytest.raises(DataError, match=r"holds uint16 values; say which .* --stretch MIN,MAX or --stretch percentile"):
        opened(path)
    fixed = pixels(opened(path, stretch=(1000.0, 2000.0)).read((0, 0, 60, 40)))
    expected = np.rint((values.astype(float) - 1000).clip(0, 1000) / 1000 * 255)
    assert np.abs(fixed.transpose(2, 0, 1) - expected).max() <= 1
    percentile = opened(path, stretch="percentile")
    window, whole = pixels(percentile.read((20, 10, 40, 30))), pixels(percentile.read((0, 0, 60, 40)))
    assert np.array_equal(window, whole[10:30, 20:40]), "another range in each window"
    assert [np.mean(whole[..., band] == 0) > 0.015 for band in range(3)] == [True] * 3


@GEO
def test_a_damaged_geotiff_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", RGB, compress="deflate")
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DataError, match=r"x\.tif: (cannot be read at|cannot be opened)"):
        opened(path).read((0, 0, 60, 40))


def test_an_image_that_training_refuses_names_the_choices(tmp_path: Path) -> None:
    Image.fromarray(rng.integers(0, 60_000, (20, 30), dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png: .*16-bit.*--stretch MIN,MAX or --stretch percentile"):
        opened(tmp_path / "deep.png")


def test_a_large_image_names_the_flag(tmp_path: Path) -> None:
    Image.new("RGB", (50, 30)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match=r"more pixels than --max-pixels 1000; cut it into tiles or raise the limit"):
        opened(tmp_path / "x.png", max_pixels=1000)


def test_without_rasterio_it_is_said_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.tif"
    if windowed.has_rasterio():
        write(path, RGB)
    else:
        Image.fromarray(RGB.transpose(1, 2, 0)).save(path, tiffinfo={34735: (1, 1, 0, 0), 33550: (1.0,), 33922: (1.0,)})
    monkeypatch.setattr(windowed, "has_rasterio", lambda: False)
    raster = opened(path)
    assert "it is georeferenced; for coordinates and windowed reading: pip install -e '.[geo]'" in raster.remark
    assert np.array_equal(pixels(raster.read((0, 0, 60, 40))), RGB.transpose(1, 2, 0))
    with pytest.raises(MissingExtraError, match=r"--bands and --stretch need rasterio: pip install"):
        opened(path, bands=(1, 2, 3))


@GEO
def test_a_rotation_that_rasterio_does_not_undo_is_refused(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(RGB.transpose(1, 2, 0)).save(tmp_path / "x.jpg", exif=exif)
    assert opened(tmp_path / "x.jpg").turned
    with pytest.raises(
        DataError, match=r"EXIF orientation 6\) is not undone when rasterio reads it .*data\.exif=ignore"
    ):
        opened(tmp_path / "x.jpg", bands=(1, 2, 3))
    assert opened(tmp_path / "x.jpg", bands=(1, 2, 3), exif="ignore").width == 60


@GEO
def test_another_size_than_the_annotated_one_is_refused_in_windows_too(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", RGB)
    options = RasterOptions(max_pixels=10**6, bands=(1, 2, 3))
    assert open_raster(ImageFile(path, size=(40, 60), entry="c.json: images[0]"), options).height == 40
    with pytest.raises(DataError, match=r"is 60 x 40 px, but c\.json: images\[0\] says width 60, height 41"):
        open_raster(ImageFile(path, size=(41, 60), entry="c.json: images[0]"), options)


@GEO
@pytest.mark.parametrize("options", [{}, {"stretch": (0.0, 255.0)}])
def test_white_is_zero_is_read_as_training_reads_it(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write(tmp_path / "x.tif", RGB[:1], photometric="MINISWHITE", compress="deflate")
    raster = opened(path, **options)
    assert isinstance(raster, windowed.WindowedRaster)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(expected[..., 0], 255 - RGB[0])
    assert np.array_equal(pixels(raster.read((0, 0, 60, 40))), expected)


@GEO
def test_complex_values_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", RGB[:1].astype(np.complex64))
    with pytest.raises(DataError, match="holds complex64 values; make real ones of them"):
        opened(path, stretch="percentile")


@GEO
def test_a_damaged_raster_with_percentiles_is_a_data_error(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tif", RGB, compress="deflate")
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(DataError, match=r"x\.tif: cannot be (read|opened)"):
        opened(path, stretch="percentile").read((0, 0, 60, 40))


@GEO
@pytest.mark.parametrize(
    "crs",
    [
        'LOCAL_CS["site",UNIT["metre",1]]',
        "+proj=geos +h=35785831 +lon_0=0 +a=6378169 +b=6356584",  # its corners look past the Earth
    ],
)
def test_a_place_without_longitude_and_latitude_is_none_and_said(tmp_path: Path, crs: str) -> None:
    from rasterio.transform import Affine

    wide = Affine(3e5, 0, -9e6, 0, -3e5, 6e6)
    raster = opened(write(tmp_path / "x.tif", RGB, crs=crs, transform=wide), stretch=(0, 255))
    assert raster.georeference is None
    assert "no longitude and latitude, so its results are in px" in raster.remark


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_a_data_error(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch(mode=0)
    with pytest.raises(DataError, match="no permission to read it; change its permissions"):
        opened(tmp_path / "x.png")


def test_a_file_that_cannot_be_opened_is_a_data_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(RGB.transpose(1, 2, 0)).save(tmp_path / "x.png")

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(windowed, "read_tiff_header", refuse)
    with pytest.raises(DataError, match=r"x\.png: cannot be read \(Permission denied\)"):
        opened(tmp_path / "x.png")
