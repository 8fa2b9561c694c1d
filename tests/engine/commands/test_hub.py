"""What the detector of `torch.hub` takes for an image, and what it refuses."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.images.rasters import RasterOptions
from datasets.structures import DataError
from engine.commands.hub import ImageDetector, as_picture, load_detector


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("I;16", (4, 4)), "mode I;16 holds more than 8 bits"),
        (Image.new("I", (4, 4)), "mode I holds"),
        (Image.new("F", (4, 4)), "mode F holds"),
        (None, "a NoneType is no image"),
        ([[0]], "a list is no image"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\)"),
        (torch.zeros(3, 0, 4), r"shape \(0, 4, 3\)"),
        (torch.full((3, 4, 4), 2.0), "must lie in"),
    ],
)
def test_what_is_no_image(image: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_picture(image)


def test_the_rotation_of_a_file_follows_the_training(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (8, 5)).save(tmp_path / "x.jpg", exif=exif)
    assert as_picture(tmp_path / "x.jpg", RasterOptions(10**6)).size == (5, 8)
    assert as_picture(tmp_path / "x.jpg", RasterOptions(10**6, "ignore")).size == (8, 5)


def test_a_deep_file_is_no_reason_for_flags_of_a_command(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 5), 999, np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(DataError, match="give its pixels as a uint8 array") as raised:
        as_picture(tmp_path / "x.png")
    assert "--stretch" not in str(raised.value)


def test_the_limit_of_pillow_stays_that_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1234)
    Image.new("RGB", (8, 5)).save(tmp_path / "x.png")
    as_picture(tmp_path / "x.png")
    with pytest.raises(DataError):
        as_picture(tmp_path / "none.png")
    assert Image.MAX_IMAGE_PIXELS == 1234


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"conf": 1.5}, "conf"),
        ({"overlap": -0.1}, "overlap"),
        ({"overlap": 1.0}, "overlap"),
        ({"scale": 0.0}, "scale"),
        ({"scale": float("nan")}, "scale"),
    ],
)
def test_values_out_of_range(values: dict[str, float], message: str) -> None:
    detector = ImageDetector(SimpleNamespace())  # type: ignore[arg-type]  # no part of it is reached
    with pytest.raises(ValueError, match=message):
        detector.predict(Image.new("RGB", (4, 4)), **values)


def test_unknown_scores() -> None:
    with pytest.raises(ValueError, match="give corrected or published"):
        load_detector("x.pth", system="dino", scores="best")
