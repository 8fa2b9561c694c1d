"""The frame that an image is read in, in every format that notes a rotation."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from datasets.findings import Findings
from datasets.images.checks import check_contents
from datasets.images.decode import ImageFile, inspect_image, read_image
from datasets.images.orientation import ExifPolicy
from datasets.images.rasters import RasterOptions
from datasets.structures import DataError
from tests.support.image_files import write_png, write_tiff

TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
XMP = '<x:xmpmeta><rdf:Description tiff:Orientation="{}"/></x:xmpmeta>'


def pixels(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def exif(orientation: int) -> Image.Exif:
    notes = Image.Exif()
    notes[274] = orientation
    return notes


def as_png(path: Path, stored: np.ndarray, orientation: int) -> None:
    Image.fromarray(stored).save(path, format="PNG", exif=exif(orientation))


def as_png_with_exif_behind(path: Path, stored: np.ndarray, orientation: int) -> None:
    as_png(path, stored, orientation)
    content = path.read_bytes()
    start = content.index(b"eXIf") - 4
    chunk = content[start : start + 12 + int.from_bytes(content[start : start + 4], "big")]
    path.write_bytes(content.replace(chunk, b"")[:-12] + chunk + content[-12:])


def as_webp(path: Path, stored: np.ndarray, orientation: int) -> None:
    Image.fromarray(stored).save(path, format="WEBP", lossless=True, exif=exif(orientation))


def as_webp_with_xmp(path: Path, stored: np.ndarray, orientation: int) -> None:
    Image.fromarray(stored).save(path, format="WEBP", lossless=True, xmp=XMP.format(orientation).encode())


def as_tiff(path: Path, stored: np.ndarray, orientation: int) -> None:
    write_tiff(path, bands=3, pixels=stored, size=stored.shape[:2], tag_274=orientation)


def as_compressed_tiff(path: Path, stored: np.ndarray, orientation: int) -> None:
    write_tiff(path, bands=3, pixels=stored, size=stored.shape[:2], tag_274=orientation, compressed=True)


WRITERS = (as_png, as_png_with_exif_behind, as_webp, as_webp_with_xmp, as_tiff, as_compressed_tiff)


def read(path: Path, size: tuple[int, ...], policy: ExifPolicy = "auto") -> np.ndarray:
    file = ImageFile(path, size=(size[0], size[1]), entry="train.json: images[3] (id 17)")
    inspect_image(file, exif=policy)
    return np.asarray(read_image(file, exif=policy))


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("orientation", TURNED)
def test_every_orientation_is_applied_ignored_and_confirmed_by_the_size(
    tmp_path: Path, write: Callable[..., None], orientation: int
) -> None:
    stored, path = pixels(), tmp_path / "a"
    turned = TURNED[orientation](stored)
    write(path, stored, orientation)
    assert np.array_equal(read(path, stored.shape, "ignore"), stored)
    assert np.array_equal(read(path, turned.shape, "apply"), turned)
    assert np.array_equal(read(path, stored.shape), stored)
    if turned.shape != stored.shape:
        assert np.array_equal(read(path, turned.shape), turned)
        for policy, size in (("ignore", turned.shape), ("apply", stored.shape)):
            with pytest.raises(
                DataError, match=rf"is 30 x 20 px as stored, .*orientation {orientation} .*{policy}"
            ) as e:
                read(path, size, policy)  # type: ignore[arg-type]
            assert e.value.reason == "image_size"


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("policy", get_args(ExifPolicy))
def test_only_what_the_size_cannot_tell_is_ambiguous(
    tmp_path: Path, write: Callable[..., None], policy: ExifPolicy
) -> None:
    for side, doubtful in ((20, set(range(2, 9))), (30, {2, 3, 4})):
        stored = pixels(20, side)
        for orientation in TURNED:
            write(tmp_path / "a", stored, orientation)
            size = TURNED[orientation](stored).shape if policy == "apply" else stored.shape
            frame = inspect_image(ImageFile(tmp_path / "a", size=size[:2], entry=""), exif=policy).frame
            assert frame.orientation == orientation
            assert frame.ambiguous == (policy == "auto" and orientation in doubtful)
            assert frame.applied == (policy == "apply" and orientation > 1)


def test_one_warning_counts_them_and_names_the_first(tmp_path: Path) -> None:
    files = []
    for number, orientation in enumerate((1, 6, 3, 6)):
        as_png(tmp_path / f"{number}.png", pixels(20, 20), orientation)
        files.append(ImageFile(tmp_path / f"{number}.png", size=(20, 20), entry=f"images[{number}]"))
    for policy, warned in (("auto", {"exif_ambiguous": 3}), ("apply", {}), ("ignore", {})):
        findings = Findings()
        check_contents(
            files, decode=False, skip=False, reading=RasterOptions(10**6, policy), threads=2, findings=findings
        )
        assert findings.counts("warning") == warned
        if warned:
            (message,) = findings.messages("warning")
            assert "3 images with" in message
            assert "orientation 3: 1, 6: 2)" in message
            assert f"{tmp_path / '1.png'} (images[1])" in message


@pytest.mark.parametrize("notes", [b"", b"MM\0*", b"Exif\0\0MM\0*\0\0\0\x08\0\x09", b"hello, this is no EXIF"])
def test_notes_that_cannot_be_read_are_no_fault_of_the_pixels(tmp_path: Path, notes: bytes) -> None:
    write_png(tmp_path / "before.png", bits=8, colour_type=2, before=[(b"eXIf", notes)])
    write_png(tmp_path / "after.png", bits=8, colour_type=2, after=[(b"eXIf", notes)])
    for path in tmp_path.iterdir():
        assert not read(path, (20, 30)).any()


def test_bytes_that_look_like_notes_are_none(tmp_path: Path) -> None:
    content = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    write_png(tmp_path / "a.png", bits=8, colour_type=2, after=[(b"eXIf", content)])
    assert read(tmp_path / "a.png", (30, 20)).shape == (30, 20, 3)
    spoilt = tmp_path / "a.png"
    spoilt.write_bytes(spoilt.read_bytes().replace(content, content[:-1] + b"\1"))
    with pytest.raises(DataError, match="is 30 x 20 px, but"):
        read(spoilt, (30, 20))
