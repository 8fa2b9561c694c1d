"""Images of any size, read window by window: decoded whole as in training, or by rasterio (`windowed.py`)."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Literal, Protocol

from PIL import Image

from datasets.images.decode import FORMATS, ImageFile, ImageTraits, inspect_image, read_image
from datasets.images.orientation import ExifPolicy, Frame, choose_frame, read_orientation
from datasets.structures import DataError, Georeference

Window = tuple[int, int, int, int]
"""xyxy, px"""
Stretch = tuple[float, float] | Literal["percentile"]
"""Values that become 0 and 255; percentile: the 2nd and the 98th percentile of each band of the whole raster"""
GEO_EXTRA = "pip install -e '.[geo]'"
LIMIT = "--max-pixels"
_CHOICES = (
    "choose bands with --bands 1,2,3 and a value range with --stretch MIN,MAX or --stretch percentile (both need "
    f"rasterio: {GEO_EXTRA}), or convert it to 8-bit RGB"
)


class MissingExtraError(Exception):
    """Something needs rasterio, which is not installed."""


class Raster(Protocol):
    """An open image.

    width, height   px, in the frame in which it is read
    georeference    where it lies, if that is known
    turned          whether a camera's rotation was undone
    remark          what the user should know, or ""
    """

    width: int
    height: int
    georeference: Georeference | None
    turned: bool
    remark: str

    def read(self, window: Window) -> Image.Image | None:
        """RGB; None where no pixel holds data. Raises DataError."""

    def overview(self, longest: int) -> Image.Image:
        """The whole image in RGB, no side longer than this, px."""

    def close(self) -> None:
        """Free its memory."""


def parse_stretch(text: str | None) -> Stretch | None:
    """Of "MIN,MAX" or percentile. Raises ValueError."""
    if text is None or text == "percentile":
        return text  # type: ignore[return-value]
    low, high = map(float, text.split(","))
    if not -float("inf") < low < high < float("inf"):
        raise ValueError(f"{text}: MIN must be below MAX")
    return low, high


@dataclass(frozen=True)
class RasterOptions:
    """How images are opened.

    max_pixels   limit of an image that is decoded whole
    exif         as in `read_image`
    bands        numbers of three bands, from 1, for red, green, blue; None: as the file says
    stretch      of values other than 8-bit; None: such images are refused
    """

    max_pixels: int
    exif: ExifPolicy = "auto"
    bands: tuple[int, int, int] | None = None
    stretch: Stretch | None = None

    @property
    def chooses(self) -> bool:
        """Whether rasterio has to read the images."""
        return self.bands is not None or self.stretch is not None


def open_raster(file: ImageFile, options: RasterOptions) -> Raster:
    """Open an image; its pixels are read later.

    With `bands` or `stretch`, rasterio reads it. Otherwise it is decoded as in training, except for a GeoTIFF, or a
    TIFF above `max_pixels`, where rasterio is installed.

    Raises DataError, and MissingExtraError if `bands` or `stretch` are given without rasterio.
    """
    from datasets.images.windowed import WindowedRaster, has_rasterio, read_tiff_header

    if not file.path.is_file():
        inspect_image(file)  # raises
    windowed = options.chooses
    if windowed and not has_rasterio():
        raise MissingExtraError(f"--bands and --stretch need rasterio: {GEO_EXTRA}")
    try:
        header = read_tiff_header(file.path)
    except OSError as error:
        inspect_image(file)  # says what is wrong
        raise DataError(f"{file.path}: cannot be read ({error.strerror})", "unreadable_image") from None
    placed = header is not None and header.georeferenced
    if windowed or (header is not None and has_rasterio() and (placed or header.pixels > options.max_pixels)):
        raster = WindowedRaster(file.path, bands=options.bands, stretch=options.stretch)
        try:
            _require_frame(file, (raster.width, raster.height), options.exif)
        except DataError:
            raster.close()
            raise
        return raster
    remark = f"it is georeferenced; for coordinates and windowed reading: {GEO_EXTRA}" if placed else ""
    return DecodedImage(file, options, remark=remark)


def read_whole(file: ImageFile, options: RasterOptions) -> Image.Image:
    """Decode one image to RGB, as `read_image`; with bands or a stretch by rasterio. Raises DataError."""
    if not options.chooses:
        return read_image(file, max_pixels=options.max_pixels, exif=options.exif)
    with closing(_open_whole(file, options)) as raster:
        pixels = raster.read((0, 0, raster.width, raster.height))
    return Image.new("RGB", (raster.width, raster.height)) if pixels is None else pixels


def inspect_whole(file: ImageFile, options: RasterOptions) -> ImageTraits:
    """The same checks without decoding. Raises DataError."""
    if not options.chooses:
        return inspect_image(file, max_pixels=options.max_pixels, exif=options.exif)
    with closing(_open_whole(file, options)) as raster:
        return ImageTraits("RGB", Frame(1), False, (raster.height, raster.width))


def _open_whole(file: ImageFile, options: RasterOptions) -> Raster:
    try:
        raster = open_raster(file, options)
    except MissingExtraError:
        raise DataError(f"data.bands and data.stretch need rasterio: {GEO_EXTRA}", "missing_extra") from None
    if raster.width * raster.height > options.max_pixels:
        raster.close()
        raise DataError(
            f"{file.path}: {raster.width} x {raster.height} px: more pixels than data.max_image_pixels "
            f"{options.max_pixels}; cut it into tiles or raise the limit",
            "image_bomb",
        )
    return raster


def _require_frame(file: ImageFile, stored: tuple[int, int], exif: ExifPolicy) -> None:
    """rasterio reads the pixels as stored: raise a DataError where training would turn them, or wants another size.

    stored   (width, height) px
    """
    try:
        with Image.open(file.path, formats=FORMATS) as image:
            orientation = read_orientation(image, file.path)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError):
        orientation = 1  # a format of rasterio's alone
    if file.size is not None:
        frame = choose_frame(stored, orientation, file.size[::-1], exif)
    else:
        frame = Frame(orientation, applied=orientation > 1 and exif != "ignore")
    if frame is None:
        height, width = file.size or (0, 0)
        raise DataError(
            f"{file.path}: is {stored[0]} x {stored[1]} px, but {file.entry} says width {width}, height {height}; "
            "correct the annotation file or restore the image it was made from",
            "image_size",
        )
    if frame.applied:
        raise DataError(
            f"{file.path}: the camera's rotation (EXIF orientation {orientation}) is not undone when rasterio reads it "
            "(--bands, --stretch, windows); save it turned, or read it as stored with --set data.exif=ignore",
            "turned_image",
        )


class DecodedImage:
    """An image that is decoded whole when it is first read. Raises DataError if its header shows a fault."""

    def __init__(self, file: ImageFile, options: RasterOptions, *, remark: str = "") -> None:
        self._file, self._options = file, options
        try:
            traits = inspect_image(file, max_pixels=options.max_pixels, exif=options.exif, limit=LIMIT)
        except DataError as error:
            if error.reason in ("band_count", "deep_image"):
                raise DataError(f"{error.summary().partition(';')[0]}; {_CHOICES}", error.reason) from None
            raise
        self.height, self.width = traits.size
        self.turned = traits.frame.applied
        self.georeference: Georeference | None = None
        self.remark = remark
        self._image: Image.Image | None = None

    def read(self, window: Window) -> Image.Image | None:
        """RGB; never None."""
        image = self._decoded()
        return image if window == (0, 0, self.width, self.height) else image.crop(window)

    def overview(self, longest: int) -> Image.Image:
        """The whole image in RGB, no side longer than this, px."""
        image = self._decoded()
        factor = min(1.0, longest / max(image.size))
        width, height = (max(round(side * factor), 1) for side in image.size)
        return image.resize((width, height), Image.Resampling.BOX, reducing_gap=2.0)

    def close(self) -> None:
        """Forget the pixels."""
        self._image = None

    def _decoded(self) -> Image.Image:
        if self._image is None:
            options = self._options
            self._image = read_image(self._file, max_pixels=options.max_pixels, exif=options.exif, limit=LIMIT)
        return self._image
