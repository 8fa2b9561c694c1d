"""Image files: every mode becomes 8-bit RGB, every broken file is one message."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from datasets.images.decode import ImageFile, read_image
from datasets.structures import DataError

ENTRY = "train.json: images[3] (id 17)"


def _read(path: Path, size: tuple[int, int] = (20, 30)) -> Image.Image:
    return read_image(ImageFile(path, size=size, entry=ENTRY))


def _noise(height: int = 20, width: int = 30) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr"])
def test_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    _noise().convert(mode).save(path)
    image = _read(path)
    assert (image.mode, image.size) == ("RGB", (30, 20))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_deep_images_are_refused_not_saturated(tmp_path: Path, dtype: type) -> None:
    path = tmp_path / "deep.tif"
    Image.fromarray((np.arange(600).reshape(20, 30) * 60).astype(dtype)).save(path)
    with pytest.raises(DataError, match=r"deep\.tif: a TIFF .* more than 8 bits.*8-bit RGB.*id 17"):
        _read(path)


def _spoil(path: Path, kind: str) -> None:
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        _noise(200, 300).save(path, format="JPEG")
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "truncated png":
        _noise(200, 300).save(path, format="PNG")
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "html":
        path.write_text("<!doctype html><title>404</title>")
    elif kind == "lfs":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    elif kind == "text":
        path.write_text("hello")
    elif kind == "folder":
        path.mkdir()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "no such image"),
        ("empty", "0 bytes"),
        ("truncated", "truncated"),
        ("truncated png", "fetch the file again"),
        ("html", "web page"),
        ("lfs", "git lfs pull"),
        ("text", "not an image"),
        ("folder", "is a folder"),
    ],
)
def test_broken_files(tmp_path: Path, kind: str, words: str) -> None:
    path = tmp_path / "x.jpg"
    _spoil(path, kind)
    with pytest.raises(DataError) as caught:
        _read(path, (200, 300))
    for word in ["x.jpg", words, "images[3] (id 17)"]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_size_than_annotated(tmp_path: Path) -> None:
    _noise().save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: is 30 x 20 px, but .*id 17.* width 31, height 20"):
        _read(tmp_path / "a.png", (20, 31))


def test_rotation_by_exif_only_where_the_annotation_means_it(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    _noise().save(path, exif=exif)
    assert _read(path, (30, 20)).size == (20, 30)
    assert _read(path, (20, 30)).size == (30, 20)


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _noise().save(tmp_path / "a.png")
    file = ImageFile(tmp_path / "a.png", size=(20, 30), entry=ENTRY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # put back in the end
    assert read_image(file, max_pixels=600).size == (30, 20)
    for limit in (599, 300, 100):
        with pytest.raises(DataError, match=rf"a\.png: .*data.max_image_pixels {limit}; cut it into tiles"):
            read_image(file, max_pixels=limit)


class _Failing(Dataset[torch.Tensor]):
    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        _read(self.path)
        return torch.zeros(1)


def test_the_message_survives_a_worker(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("hello")
    with pytest.raises(DataError) as alone:
        _read(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        list(DataLoader(_Failing(tmp_path / "a.png"), num_workers=1))
    assert "Traceback" in str(caught.value)
    assert caught.value.summary() == str(alone.value) == alone.value.summary()
