"""Bits and bands are the file's own, whatever mode Pillow opens it in."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.images import decode as images
from datasets.images.decode import ImageFile, inspect_image, read_image
from datasets.images.pixel_format import read_pixel_format
from datasets.structures import DataError
from tests.support.image_files import write_png, write_tiff

Write = Callable[[Path], object]


def png(bits: int, colour_type: int, **options: Any) -> Write:
    return lambda path: write_png(path, bits=bits, colour_type=colour_type, **options)


def tiff(bands: int, bits: int = 8, **options: Any) -> Write:
    return lambda path: write_tiff(path, bands=bands, bits=bits, **options)


def netpbm(kind: str, limit: str, content: bytes) -> Write:
    return lambda path: path.write_bytes(f"{kind} # 1 2 3\n30 20\n{limit}\n".encode() + content)


def pillow(mode: str, kind: str, **options: Any) -> Write:
    return lambda path: Image.new(mode, (30, 20)).save(path, format=kind, **options)


def patched(write: Write, mark: bytes, *changes: tuple[int, int]) -> Write:
    """Other bytes at places after the first occurrence of the mark."""

    def make(path: Path) -> None:
        write(path)
        content = bytearray(path.read_bytes())
        for offset, value in changes:
            content[content.index(mark) + offset] = value
        path.write_bytes(content)

    return make


SIZ, FRAME = b"\xff\x4f\xff\x51", b"\xff\xc0"
TWELVE = [(42 + 3 * band, 11) for band in range(3)]

DEEP: dict[str, Write] = {
    "grey PNG": png(16, 0),
    "grey PNG with alpha": png(16, 4),
    "RGB PNG": png(16, 2),
    "RGBA PNG": png(16, 6),
    "interlaced PNG": png(16, 2, interlaced=True),
    "RGB TIFF": tiff(3, 16),
    "RGB TIFF, big-endian": tiff(3, 16, order=">"),
    "RGB BigTIFF": tiff(3, 16, big=True),
    "RGB BigTIFF, big-endian": tiff(3, 16, big=True, order=">"),
    "RGB TIFF in planes": tiff(3, 16, separate=True),
    "RGB TIFF, compressed": tiff(3, 16, compressed=True),
    "RGBA TIFF": tiff(4, 16, photometric=2, extra=[2]),
    "four bands": tiff(4, 16, photometric=2, extra=[0]),
    "CMYK TIFF": tiff(4, 16, photometric=5),
    "12-bit TIFF": tiff(1, 12),
    "11-bit TIFF": tiff(3, 11),
    "32-bit TIFF": tiff(1, 32),
    "float TIFF": tiff(3, 32, number_format=3),
    "half-precision TIFF": tiff(1, 16, number_format=3),
    "signed 8-bit TIFF": tiff(1, 8, number_format=2),
    "two bands": tiff(2, 16),
    "PGM": netpbm("P5", "65535", bytes(1200)),
    "PPM of 10 bits": netpbm("P6", "1023", bytes(3600)),
    "plain PPM": netpbm("P3", "4095", b"0 " * 1800),
    "PFM": netpbm("Pf", "-1.0", bytes(2400)),
    "colour PFM": netpbm("PF", "-1.0", bytes(7200)),
    "JPEG of 12 bits": patched(pillow("RGB", "JPEG"), FRAME, (4, 12)),
    "JP2 of 12 bits": patched(pillow("RGB", "JPEG2000"), SIZ, *TWELVE),
    "JPEG 2000 codestream of 12 bits": patched(pillow("RGB", "JPEG2000", no_jp2=True), SIZ, *TWELVE),
    "one band of 12 bits": patched(pillow("RGBA", "JPEG2000"), SIZ, (42 + 9, 11)),
}
BANDS: dict[str, tuple[Write, str]] = {
    "two": (tiff(2), "a TIFF of 2 bands; write one of them as 8-bit grey"),
    "grey and another": (tiff(2, extra=[0]), "a TIFF of 2 bands; write one"),
    "three that are no colour": (tiff(3, photometric=1), "of 3 bands; .* the file marks"),
    "RGB and infrared": (
        tiff(4, photometric=2, extra=[0]),
        "of 4 bands; .* the file marks",
    ),
    "the same in planes": (tiff(4, photometric=2, extra=[0], separate=True), "of 4 bands; write three"),
    "five": (tiff(5, photometric=2, extra=[0, 0]), "of 5 bands; write three of them as 8-bit RGB"),
    "RGBA and one more": (tiff(5, photometric=2, extra=[2, 0]), "of 5 bands; write three"),
    "CMYK and one more": (tiff(5, photometric=5, extra=[0]), "of 5 bands; write three"),
    "eight": (tiff(8), "a TIFF of 8 bands; write three of them as 8-bit RGB"),
    "eight, compressed, big-endian": (tiff(8, order=">", compressed=True), "a TIFF of 8 bands; write three"),
    "eight of 16 bits": (
        tiff(8, 16),
        "write three of them as 8-bit RGB .* range .*more than 8 bits per channel .16-bit",
    ),
    "thirteen of 16 bits": (tiff(13, 16, compressed=True), "a TIFF of 13 bands; write three"),
    "eight in a BigTIFF": (tiff(8, big=True), "a TIFF of 8 bands; write three"),
    "JPEG of two": (patched(pillow("L", "JPEG"), FRAME, (9, 2)), "a JPEG of 2 bands; write one"),
    "JPEG 2000 of five": (
        patched(pillow("RGBA", "JPEG2000", no_jp2=True), SIZ, (41, 5), (54, 7)),
        "2000 of 5",
    ),
}
FINE: dict[str, Write] = {
    **{f"PNG of colour type {kind}": png(8, kind) for kind in (0, 2, 3, 4, 6)},
    "PNG of 4 bits": png(4, 0),
    "RGB TIFF": tiff(3),
    "RGB TIFF, big-endian": tiff(3, order=">"),
    "RGB BigTIFF": tiff(3, big=True),
    "RGB TIFF in planes": tiff(3, separate=True),
    "RGB TIFF, compressed": tiff(3, compressed=True),
    "RGBA TIFF": tiff(4, photometric=2, extra=[2]),
    "RGBA TIFF, premultiplied": tiff(4, photometric=2, extra=[1]),
    "RGBA TIFF that does not say so": tiff(4, photometric=2),
    "grey TIFF": tiff(1),
    "grey TIFF with alpha": tiff(2, extra=[2]),
    "grey TIFF with alpha, premultiplied": tiff(2, extra=[1]),
    "CMYK TIFF": tiff(4, photometric=5),
    "PPM": netpbm("P6", "255", bytes(1800)),
    "PPM up to 200": netpbm("P6", "200", bytes(1800)),
    **{f"{mode} JPEG": pillow(mode, "JPEG") for mode in ("L", "RGB", "CMYK")},
    "progressive JPEG": pillow("RGB", "JPEG", progressive=True),
    **{f"{mode} JPEG 2000": pillow(mode, "JPEG2000") for mode in ("L", "LA", "RGB", "RGBA")},
    **{f"RGB {kind}": pillow("RGB", kind) for kind in ("BMP", "GIF", "WEBP")},
}


def file_of(path: Path, write: Write) -> ImageFile:
    write(path)
    return ImageFile(path, size=(20, 30), entry="train.json: images[3] (id 17)")


def refusals(file: ImageFile) -> list[tuple[str, str]]:
    """Of the look at the header and of the decoding."""
    found = []
    for look in (inspect_image, read_image):
        with pytest.raises(DataError) as caught:
            look(file)
        found.append((caught.value.reason, str(caught.value)))
    return found


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_are_refused(tmp_path: Path, name: str) -> None:
    header, decoded = refusals(file_of(tmp_path / "a", DEEP[name]))
    assert header == decoded
    assert header[0] == "deep_image"
    assert "with a value range of your choice" in header[1]
    assert "id 17" in header[1]


@pytest.mark.parametrize("name", BANDS)
def test_other_numbers_of_bands_are_refused(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    write, words = BANDS[name]
    header, decoded = refusals(file_of(tmp_path / "a", write))
    assert header == decoded
    assert header[0] == "band_count"
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(header[1])
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", FINE)
def test_grey_and_colour_of_8_bits_are_read(tmp_path: Path, name: str) -> None:
    file = file_of(tmp_path / "a", FINE[name])
    inspect_image(file)
    assert (read_image(file).mode, read_image(file).size) == ("RGB", (30, 20))


@pytest.mark.parametrize("name", [*DEEP, *FINE])
def test_a_header_that_is_cut_off_is_no_crash(tmp_path: Path, name: str) -> None:
    (DEEP | FINE)[name](tmp_path / "a")
    content = (tmp_path / "a").read_bytes()
    for length in range(0, min(len(content), 200), 7):
        (tmp_path / "a").write_bytes(content[:length])
        with (tmp_path / "a").open("rb") as stream:
            read_pixel_format(stream)


@pytest.mark.parametrize("write", [tiff(3, tag_259=34887), tiff(3, tag_262=6, tag_259=50002)], ids=["LERC", "JPEG XL"])
def test_a_compression_that_is_not_known_is_one_message(tmp_path: Path, write: Write) -> None:
    header, _ = refusals(file_of(tmp_path / "a", write))
    assert header[0] == "broken_image"
    assert "or convert it to 8-bit RGB" in header[1]


def test_a_warning_of_pillow_stays_off_the_terminal(tmp_path: Path) -> None:
    image = Image.new("P", (30, 20))
    image.putpalette(np.arange(256).repeat(3).astype(np.uint8).tobytes())
    file = file_of(tmp_path / "a", lambda path: image.save(path, format="PNG", transparency=bytes(range(256))))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images._silence_pillow.cache_clear()
        assert read_image(file).mode == "RGB"
    images._silence_pillow.cache_clear()
    assert caught == []
