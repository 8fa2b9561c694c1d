"""A file that is not there, and the one that a person would find at once."""

import unicodedata
from pathlib import Path

import pytest

from datasets.findings import Findings
from datasets.images.checks import check_places
from datasets.images.decode import ImageFile
from datasets.images.folders import Folders
from datasets.images.hints import NameHints, hint_for_path

COMPOSED = "\u00dcnter-\u00e9-0.png"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("asked", "there", "words"),
    [
        ("0.PNG", "0.png", "names are case-sensitive"),
        ("Sub/0.png", "sub/0.png", "names are case-sensitive"),
        ("sub/0.png", "SUB/0.PNG", "names are case-sensitive"),
        (
            COMPOSED,
            DECOMPOSED,
            r"in another Unicode form, 'U\u0308nter-e\u0301-0.png' there, '\xdcnter-\xe9-0.png' here",
        ),
        (
            DECOMPOSED,
            COMPOSED,
            r"in another Unicode form, '\xdcnter-\xe9-0.png' there, 'U\u0308nter-e\u0301-0.png' here",
        ),
        ("a\u00a0b.png", "a b.png", r"'a b.png' there, 'a\xa0b.png' here"),
        ("\ufeff0.png", "0.png", r"in another Unicode form, '0.png' there, '\ufeff0.png' here"),
        ("sub\\0.png", "sub/0.png", "folders are separated by /"),
        ("a\\b\\0.png", "a/b/0.png", "folders are separated by /"),
        ("C:\\data\\train\\0.png", "0.png", "folders are separated by /, in another folder"),
        ("a%20b.png", "a b.png", "percent encoding is not undone"),
        ("a%2520b.png", "a b.png", "percent encoding is not undone"),
        ("sub%2F0.png", "sub/0.png", "percent encoding is not undone"),
        ("a b.png", "a%20b.png", "percent encoding is not undone"),
        ("images/0.png", "0.png", "in another folder"),
        ("data/train/0.png", "0.png", "in another folder"),
        ("0.png", "train/0.png", "in another folder"),
        ("0.jpg", "0.png", "with another extension"),
        ("0.png", "0.tiff", "with another extension"),
        ("0", "0.png", "with another extension"),
        ("0.png.jpg", "0.png", "with another extension"),
        ("0.png ", "0.png", "blanks count, '0.png' there, '0.png ' here"),
        (" 0.png", "0.png", "blanks count, '0.png' there, ' 0.png' here"),
        ("0.png", "0 .png", "blanks count, '0 .png' there, '0.png' here"),
        ("sub /0.png", "sub/0.png", "blanks count"),
        ("Sub\\0.JPG", "sub/0.jpg", "folders are separated by /, names are case-sensitive"),
        ("train/0.jpg", "0.png", "with another extension, in another folder"),
        ("A%20b.png", "a b.PNG", "percent encoding is not undone, names are case-sensitive"),
        (f"x/{COMPOSED}", f"X/{DECOMPOSED}", "in another Unicode form, names are case-sensitive"),
    ],
)
def test_the_file_that_is_meant(tmp_path: Path, asked: str, there: str, words: str) -> None:
    put(tmp_path, there, "other.png", "elsewhere/another.png")
    hint = NameHints(tmp_path, Folders())(asked)
    assert hint is not None
    assert hint.startswith(f"{there} exists: ")
    assert words in hint


@pytest.mark.parametrize(
    ("asked", "there"), [("a/0.png", "b/0.png"), ("0.png", "10.png"), ("0.png", "0.json"), ("0.png", "0.png/1.png")]
)
def test_another_file_is_not_meant(tmp_path: Path, asked: str, there: str) -> None:
    put(tmp_path, there)
    assert NameHints(tmp_path, Folders())(asked) is None


def test_the_nearest_of_several(tmp_path: Path) -> None:
    put(tmp_path, "a/0.png", "b/0.png", "0.jpg", "0.tif")
    (tmp_path / "round").symlink_to(tmp_path)
    hints = NameHints(tmp_path, Folders())
    assert hints("x/0.png") == "0.jpg exists: with another extension, in another folder (and 1 more like it)"
    assert hints("A\\0.png") == (
        "a/0.png exists: folders are separated by /, names are case-sensitive (and 2 more like it)"
    )


def test_the_hint_is_in_the_message_and_folders_are_listed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, *(f"sub/{number}.png" for number in range(50)))
    listed = []
    list_one = Folders.find.__globals__["_list"]
    monkeypatch.setitem(Folders.find.__globals__, "_list", lambda folder: listed.append(folder) or list_one(folder))
    files = [ImageFile(tmp_path / f"SUB\\{i}.jpg", size=(1, 1), entry=f"t.json: images[{i}]") for i in range(50)]
    findings = Findings()
    check_places(files, root=tmp_path, follow_links=False, findings=findings)
    messages = findings.messages("error")
    assert len(messages) == 50
    assert "SUB\\7.jpg: no such image; sub/7.png exists: folders are separated by /, names are case-s" in messages[7]
    assert messages[7].endswith("(t.json: images[7])")
    assert len(listed) == len(set(listed)) == 2


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        ("data/Train.JSON", "data/train.json"),
        ("Data/train.json", "data/train.json"),
        ("data/train", "data/train.json"),
        ("data/annotations/train.json", "data/train.json"),
        ("data/train.json", "data/annotations/train.json"),
        ("data/data/train.json", "data/train.json"),
        ("data/train.json ", "data/train.json"),
        (f"data/{COMPOSED}", f"data/{DECOMPOSED}"),
    ],
)
def test_a_single_file_is_looked_for_level_by_level(tmp_path: Path, asked: str, there: str) -> None:
    put(tmp_path, there)
    (tmp_path / "data" / "train").mkdir()
    hint = hint_for_path(tmp_path / asked, folder=False, endings=(".json",))
    assert hint.startswith(f"{tmp_path / there} exists: ")
    assert hint_for_path(tmp_path / "data" / "none.json", folder=False, endings=(".json",)) == ""


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    put(tmp_path, "data/Train", "data/images/train/0.png")
    hint = hint_for_path(tmp_path / "data" / "train", folder=True)
    assert hint == f"{tmp_path / 'data' / 'images' / 'train'} exists: in another folder; "
