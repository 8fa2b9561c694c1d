"""One image file under several names, and copies of it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.findings import Findings
from datasets.images.checks import check_contents, check_places
from datasets.images.decode import ImageFile
from datasets.images.duplicates import file_keys, report_same_pixels, shared_files, shared_pixels
from datasets.images.folders import Folders
from datasets.images.rasters import RasterOptions

SIZE = (6, 8)


def files(root: Path, *names: str) -> list[ImageFile]:
    return [
        ImageFile(root / name, size=SIZE, entry=f"t.json: images[{i}] (id {10 + i})") for i, name in enumerate(names)
    ]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """0.png and 1.png, and sub/2.png; all different."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("0.png", "1.png", "sub/2.png"):
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def link(root: Path) -> str:
    (root / "link.png").symlink_to("0.png")
    return "link.png"


def link_of_link(root: Path) -> str:
    link(root)
    (root / "sub" / "second.png").symlink_to(root / "link.png")
    return "sub/second.png"


def linked_folder(root: Path) -> str:
    (root / "again").symlink_to(root)
    return "again/0.png"


def hard_link(root: Path) -> str:
    os.link(root / "0.png", root / "sub" / "hard.png")
    return "sub/hard.png"


def link_to_hard_link(root: Path) -> str:
    hard_link(root)
    (root / "link.png").symlink_to("sub/hard.png")
    return "link.png"


WAYS: list[Callable[[Path], str]] = [
    lambda root: "0.png",
    lambda root: "./0.png",
    lambda root: "sub/../0.png",
    lambda root: ".//0.png",
    link,
    link_of_link,
    linked_folder,
    hard_link,
    link_to_hard_link,
]


@pytest.mark.parametrize("way", WAYS)
def test_one_file_by_two_names_is_an_error_that_names_both(root: Path, way: Callable[[Path], str]) -> None:
    name = way(root)
    findings = Findings()
    check_places(files(root, "0.png", "1.png", name), root=root, follow_links=True, findings=findings)
    assert findings.counts("error") == {"same_file": 1}
    (message,) = findings.messages("error")
    for part in (
        "images[0] (id 10)",
        "images[2] (id 12)",
        str(root / "0.png"),
        str(root / name),
        "annotations of both",
    ):
        assert part in message


@pytest.mark.parametrize("way", WAYS)
def test_one_file_in_both_splits(root: Path, way: Callable[[Path], str]) -> None:
    name = way(root)
    assert shared_files(files(root, "1.png", "0.png"), files(root, "sub/2.png", "gone.png", name)) == {2: 1}


def test_different_files_are_no_finding(root: Path) -> None:
    findings = Findings()
    shutil.copy(root / "0.png", root / "copy.png")
    entries = files(root, "0.png", "1.png", "sub/2.png", "copy.png")
    check_places(entries, root=root, follow_links=False, findings=findings)
    assert findings.kept == []
    assert file_keys(files(root, "none.png", "none.png"), Folders()) == [None, None]


def test_a_file_system_with_one_number_for_all_files_is_believed_in_names_only(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = Folders()
    for name in ("0.png", "sub/2.png"):
        listing, _ = folders.find(root / name)
        listing.files.update(dict.fromkeys(listing.files, 1))
    keys = file_keys(files(root, "0.png", "1.png", "sub/2.png", "./0.png"), folders)
    assert len(set(keys)) == 3
    assert keys[0] == keys[3]


def pixels_of(entries: list[ImageFile]) -> list[bytes | None]:
    findings = Findings()
    found = check_contents(
        entries, decode=True, skip=False, reading=RasterOptions(10**6, "auto"), threads=2, findings=findings
    )
    assert findings.counts("error") == {}
    return found


def test_copies_are_found_by_their_pixels_whatever_their_format(root: Path) -> None:
    image = Image.open(root / "0.png")
    shutil.copy(root / "0.png", root / "copy.png")
    image.save(root / "a.tif")
    image.save(root / "a.bmp")
    entries = files(root, "0.png", "1.png", "copy.png", "sub/2.png", "a.tif", "a.bmp")
    findings = Findings()
    report_same_pixels(entries, pixels_of(entries), np.array([0, 1, 2, 1, 0, 0]), findings)
    assert findings.counts("error") == {"same_file": 3}
    (message,) = findings.messages("error")
    assert "images[0] (id 10)" in message
    assert "images[2] (id 12)" in message
    assert "and 2 more have the same pixels" in message
    assert findings.counts("warning") == {}


def test_other_shapes_of_the_same_bytes_are_no_copies(root: Path) -> None:
    Image.new("RGB", (8, 6)).save(root / "a.png")
    Image.new("RGB", (6, 8)).save(root / "b.png")
    entries = [*files(root, "a.png"), ImageFile(root / "b.png", size=(8, 6), entry="")]
    assert len(set(pixels_of(entries))) == 2


def test_blank_tiles_are_a_warning_unless_they_have_objects(root: Path) -> None:
    names = [f"blank{i}.png" for i in range(4)]
    for name in names:
        Image.new("RGB", SIZE[::-1], "blue").save(root / name)
    entries = files(root, *names)
    digests = pixels_of(entries)
    for objects, severity in (([0, 0, 0, 0], "warning"), ([0, 0, 3, 0], "error"), ([1, 0, 3, 0], "error")):
        findings = Findings()
        report_same_pixels(entries, digests, np.array(objects), findings)
        assert [(found.severity, found.reason, found.count) for found in findings.kept] == [(severity, "same_file", 3)]


@pytest.mark.parametrize("way", [link, hard_link, lambda root: "./0.png"])
def test_a_link_is_not_found_a_second_time_by_its_pixels(root: Path, way: Callable[[Path], str]) -> None:
    entries = files(root, "0.png", way(root))
    findings = Findings()
    report_same_pixels(entries, pixels_of(entries), np.array([1, 1]), findings)
    assert findings.kept == []


def test_copies_in_both_splits_count_where_one_of_them_has_objects() -> None:
    ours, theirs = [b"a", None, b"blank", b"a"], [b"blank", b"a", None, b"b"]
    assert shared_pixels(ours, theirs, np.array([0, 1, 0, 1]), np.array([0, 0, 5, 5])) == {1: 3}
    assert shared_pixels(ours, theirs, np.zeros(4), np.array([1, 0, 0, 0])) == {0: 2}
