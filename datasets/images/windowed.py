"""Rasters of any size, bands, depth and place, read window by window by rasterio (extra `geo`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.images.rasters import Stretch, Window
from datasets.structures import DataError, Georeference

PERCENTILES = (2, 98)
OVERVIEW = 2048
"""Longer side of the overview that percentiles are taken from, px"""
_GEO_KEYS, _SCALE, _POINTS, _MATRIX = 34735, 33550, 33922, 34264


def has_rasterio() -> bool:
    """Whether the extra is installed."""
    try:
        import rasterio  # noqa: F401
    except ImportError:
        return False
    return True


@dataclass(frozen=True)
class TiffHeader:
    """Of a TIFF: its size, and whether its own tags say where it lies."""

    pixels: int
    georeferenced: bool


def read_tiff_header(path: Path) -> TiffHeader | None:
    """None for other files. A TIFF that Pillow cannot open counts as georeferenced: rasterio says what it is."""
    with path.open("rb") as stream:
        if stream.read(4) not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return None
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # nothing is decoded
    try:
        with Image.open(path, formats=["TIFF"]) as image:
            tags = image.tag_v2  # type: ignore[attr-defined]
            placed = _GEO_KEYS in tags and (_MATRIX in tags or (_SCALE in tags and _POINTS in tags))
            return TiffHeader(image.width * image.height, placed)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError):
        return TiffHeader(0, True)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


class WindowedRaster:
    """A raster that rasterio has opened.

    bands, stretch   as in `RasterOptions`

    Raises DataError for what rasterio cannot open, and for bands or values that need a choice.
    """

    turned = False

    def __init__(self, path: Path, *, bands: tuple[int, int, int] | None, stretch: Stretch | None) -> None:
        import rasterio
        from rasterio.enums import MaskFlags
        from rasterio.errors import RasterioError

        self.path = path
        try:
            self._data = rasterio.open(path)
        except rasterio.RasterioIOError as error:
            raise DataError(f"{path}: cannot be opened as a raster ({error})", "broken_image") from None
        self.width, self.height = self._data.width, self._data.height
        try:
            self.georeference, self.remark = _find_place(self._data)
            self._palette = _read_palette(self._data) if bands is None else None
            self._bands = [1] if self._palette is not None else self._choose_bands(bands)
            self._require_range(stretch)
            self._whole = all(MaskFlags.all_valid in flags for flags in self._data.mask_flag_enums)
        except DataError:
            self._data.close()
            raise
        except RasterioError as error:
            self._data.close()
            raise DataError(f"{path}: cannot be opened as a raster ({error})", "broken_image") from None
        self._stretch = stretch
        tags = self._data.tags(ns="IMAGE_STRUCTURE")
        self._white_is_zero = self._palette is None and tags.get("MINISWHITE") == "YES"

    def read(self, window: Window) -> Image.Image | None:
        """RGB; None where no pixel holds data. Raises DataError."""
        left, top, right, bottom = window
        return self._read(((top, bottom), (left, right)), (bottom - top, right - left))

    def overview(self, longest: int) -> Image.Image:
        """The whole raster in RGB, no side longer than this, px; from its overviews where it has them."""
        size = self._overview_size(longest)
        image = self._read(None, size)
        return Image.new("RGB", size[::-1]) if image is None else image

    def close(self) -> None:
        """Close the file."""
        self._data.close()

    def _read(self, window: Any, size: tuple[int, int]) -> Image.Image | None:
        """A window ((top, bottom), (left, right)), or all of it, as an image of a size (height, width), px."""
        from rasterio.enums import Resampling
        from rasterio.errors import RasterioError

        try:
            if not self._whole and not self._data.dataset_mask(out_shape=size, window=window).any():
                return None
            method = Resampling.nearest if self._palette is not None else Resampling.average
            shape = (len(self._bands), *size)
            values = self._data.read(self._bands, window=window, out_shape=shape, resampling=method)
            limits = self._range
        except (RasterioError, OSError) as error:
            place = "" if window is None else f" at {window}"
            raise DataError(f"{self.path}: cannot be read{place} ({error})", "broken_image") from None
        if self._palette is not None:
            return Image.fromarray(self._palette[values[0]])
        if limits is not None:
            low, high = (limit[:, None, None] for limit in limits)
            share = (values.astype(np.float32) - low) / (high - low)
            values = np.rint(np.nan_to_num(share.clip(0, 1)) * 255).astype(np.uint8)
        if self._white_is_zero:
            values = 255 - values
        return Image.fromarray(np.ascontiguousarray(np.broadcast_to(values, (3, *size)).transpose(1, 2, 0)))

    def _overview_size(self, longest: int) -> tuple[int, int]:
        factor = min(1.0, longest / max(self.width, self.height))
        return max(round(self.height * factor), 1), max(round(self.width * factor), 1)

    def _choose_bands(self, chosen: tuple[int, int, int] | None) -> list[int]:
        from rasterio.enums import ColorInterp

        count = self._data.count
        if chosen is not None:
            if max(chosen) > count:
                text = ",".join(map(str, chosen))
                raise DataError(f"{self.path}: --bands {text}: it has {count} bands; choose from them", "band_count")
            return list(chosen)
        kinds = enumerate(self._data.colorinterp, start=1)
        visible = [band for band, kind in kinds if kind != ColorInterp.alpha]
        if len(visible) not in (1, 3):
            raise DataError(f"{self.path}: has {count} bands; name red, green and blue: --bands 1,2,3", "band_count")
        return visible

    def _require_range(self, stretch: Stretch | None) -> None:
        kinds = {self._data.dtypes[band - 1] for band in self._bands}
        if any(kind.startswith("complex") for kind in kinds):
            raise DataError(
                f"{self.path}: holds {', '.join(sorted(kinds))} values; make real ones of them", "deep_image"
            )
        if stretch is None and kinds != {"uint8"}:
            raise DataError(
                f"{self.path}: holds {', '.join(sorted(kinds))} values; say which of them become black and white: "
                "--stretch MIN,MAX or --stretch percentile",
                "deep_image",
            )

    @cached_property
    def _range(self) -> tuple[np.ndarray, np.ndarray] | None:
        """(bands,) values that become 0 and 255; None for 8-bit values without a stretch."""
        if self._stretch is None:
            return None
        if self._stretch != "percentile":
            low, high = (np.full(len(self._bands), value, np.float32) for value in self._stretch)
            return low, high
        shape = (len(self._bands), *self._overview_size(OVERVIEW))
        limits = []
        for band in self._data.read(self._bands, out_shape=shape, masked=True):
            values = band.compressed()
            values = values[np.isfinite(values)]
            limits.append(np.percentile(values, PERCENTILES) if len(values) else (0.0, 1.0))
        low, high = np.array(limits, np.float32).T
        return low, np.maximum(high, low + np.spacing(np.abs(low)))


def _read_palette(data: Any) -> np.ndarray | None:
    """(256, 3) colours of a raster of indices, as training reads them."""
    from rasterio.enums import ColorInterp

    if data.colorinterp[0] != ColorInterp.palette or data.dtypes[0] != "uint8":
        return None
    colours = data.colormap(1)
    return np.array([colours.get(index, (0, 0, 0, 0))[:3] for index in range(256)], np.uint8)


def _find_place(data: Any) -> tuple[Georeference | None, str]:
    """Where it lies, or None and why: no coordinate reference system, no transform (ground control points are not
    used), or corners without a longitude and latitude."""
    from rasterio.warp import transform

    if data.crs is None or data.transform.is_identity:
        return None, ""
    a, b, c, d, e, f = tuple(data.transform)[:6]
    corners = [(a * x + b * y + c, d * x + e * y + f) for x in (0, data.width) for y in (0, data.height)]
    try:
        places = transform(data.crs, "OGC:CRS84", *map(list, zip(*corners, strict=True)))[:2]
        reason = "" if np.isfinite(places).all() else "its corners lie outside of its projection"
    except Exception as error:  # what PROJ says of a local system is none of rasterio's public errors
        reason = " ".join(str(error).split())
    if reason:
        return None, f"no longitude and latitude, so its results are in px ({reason})"
    code = data.crs.to_epsg()
    crs = f"EPSG:{code}" if code is not None else data.crs.to_wkt()
    return Georeference(crs, tuple(data.transform)[:6]), ""
