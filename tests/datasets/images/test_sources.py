"""Names of images: what a folder, glob, list and COCO file give, and what they refuse."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from datasets.images.sources import default_name, find_sources
from datasets.structures import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(*sources: object, **options: Any) -> list[str]:
    return [source.name for source in find_sources([str(each) for each in sources], **options)]


def test_a_folder_gives_its_images_in_order_and_no_other_file(tmp_path: Path) -> None:
    touch(tmp_path, "b.PNG", "a/c.jpeg", "a/notes.txt", "z.tif", ".hidden/x.png")
    assert names(tmp_path) == [".hidden/x.png", "a/c.jpeg", "b.PNG", "z.tif"]
    assert [source.image_id for source in find_sources([str(tmp_path)])] == [1, 2, 3, 4]


def test_equal_names_of_two_folders_are_told_apart(tmp_path: Path) -> None:
    touch(tmp_path, "one/x.png", "two/x.png", "two/y.png", "other/one/x.png")
    assert names(tmp_path / "one", tmp_path / "two") == ["one/x.png", "two/x.png", "y.png"]
    assert names(tmp_path / "one", tmp_path / "other" / "one") == ["1/one/x.png", "2/one/x.png"]


def test_a_glob_is_relative_to_its_fixed_part(tmp_path: Path) -> None:
    touch(tmp_path, "flight1/a.jpg", "flight2/a.jpg", "flight2/b.txt")
    assert names(f"{tmp_path}/flight*/*.jpg") == ["flight1/a.jpg", "flight2/a.jpg"]
    assert names(f"{tmp_path}/flight1/*.jpg") == ["a.jpg"]


def test_a_name_with_brackets_is_a_file_if_it_exists(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].png")
    assert names(tmp_path / "a[1].png") == ["a[1].png"]


def test_a_list_is_relative_to_itself(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.png", "y/b.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "l.txt").write_text(f"\ufeff../x/a.png\n# no\n{tmp_path}/y/b.png\n", encoding="utf-8")
    assert names(tmp_path / "lists" / "l.txt") == ["x/a.png", "y/b.png"]


def coco(folder: Path, images: object) -> Path:
    (folder / "c.json").write_text(json.dumps({"images": images}))
    return folder / "c.json"


def test_a_coco_file_keeps_ids_order_and_sizes(tmp_path: Path) -> None:
    images = [{"id": 9, "file_name": "b.png", "width": 5, "height": 4}, {"id": 2, "file_name": "d/a.png"}]
    found = find_sources([str(coco(tmp_path, images))], images_root=tmp_path)
    assert [(source.image_id, source.name, source.file.size) for source in found] == [
        (9, "b.png", (4, 5)),
        (2, "d/a.png", None),
    ]
    assert found[0].file.path == tmp_path / "b.png"


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], r"lists no images"),
        ("x", r"lists no images"),
        ([3], r"images\[0\]: is 3, not an object"),
        ([{"id": "7", "file_name": "a"}], r"images\[0\]: id '7' is not a whole number"),
        ([{"id": 7}], r"images\[0\] \(id 7\): file_name None is no name"),
        ([{"id": 7, "file_name": "a"}, {"id": 7, "file_name": "b"}], r"id 7 occurs twice"),
        ([{"id": 7, "file_name": "a"}, {"id": 8, "file_name": "a"}], r"file_name 'a' occurs twice"),
    ],
)
def test_bad_coco_files(tmp_path: Path, images: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        find_sources([str(coco(tmp_path, images))], images_root=tmp_path)


def test_a_coco_file_stands_alone(tmp_path: Path) -> None:
    path = coco(tmp_path, [{"id": 1, "file_name": "a.png"}])
    for sources, options, message in (
        ([path, tmp_path], {"images_root": tmp_path}, "give a COCO file alone"),
        ([path], {"images_root": tmp_path / "none"}, "--images .*none: no such folder"),
        ([tmp_path], {"images_root": tmp_path}, "--images is for a COCO file"),
    ):
        with pytest.raises(DataError, match=message):
            find_sources([str(each) for each in sources], **options)  # type: ignore[arg-type]


def test_messages_name_the_source(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / 'binary.txt'}: cannot be read as a list")):
        find_sources([str(tmp_path / "binary.txt")])


def test_results_of_an_earlier_prediction_are_no_sources(tmp_path: Path) -> None:
    touch(tmp_path, "a.png", "out/prediction.json", "out/parts/0.jsonl", "out/visuals/a.png.jpg", "parts/b.png")
    assert names(tmp_path) == ["a.png", "parts/b.png"]
    assert names(tmp_path / "out" / "visuals") == ["a.png.jpg"]


def test_names_stay_unique_whatever_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "one/x.png", "other/one/x.png", "tree/1/one/x.png", "tree/2/one/x.png")
    found = names(tmp_path / "one", tmp_path / "other" / "one", tmp_path / "tree")
    assert len(set(found)) == 4
    assert {"1/one/x.png", "2/one/x.png"} < set(found)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("photos/a.b.jpg", "a.b"),
        ("photos", "photos"),
        ("photos/*.jpg", "photos"),
        ("**/*.jpg", "here"),
        (".", "here"),
        ("photos/..", "here"),
        ("/", "images"),
    ],
)
def test_results_are_called_after_their_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, name: str
) -> None:
    touch(tmp_path, "here/photos/a.b.jpg")
    monkeypatch.chdir(tmp_path / "here")
    assert default_name(source) == name
