"""TinyPerson's files, of whole images and of their parts -> COCO."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.scripts.converters.trees import contents, draw, run, write

CATEGORIES = [{"id": 1, "name": "person"}]


def person(number: int, image: int, box: list[float], **more: object) -> dict[str, Any]:
    flags = {"ignore": False, "uncertain": False, "logo": False, "in_dense_image": False}
    return {"id": number, "image_id": image, "category_id": 1, "bbox": box, "iscrowd": False} | flags | more


def tree(root: Path) -> None:
    """Whole images and parts that overlap, erased ones, files without boxes, ignored regions, uncertain people."""
    erased = root / "erase_with_uncertain_dataset"
    for folder in (root / "train", erased / "train"):
        draw(folder / "bb_1.jpg", (300, 200))
        draw(folder / "labeled" / "p_2.jpg", (100, 80))
    draw(root / "test" / "bb_3.jpg", (300, 200))
    whole = [{"id": 0, "file_name": "bb_1.jpg", "width": 300, "height": 200}]
    whole += [{"id": 1, "file_name": "labeled/p_2.jpg", "width": 100, "height": 80}]
    people = [
        person(0, 0, [10, 12, 3, 7]),
        person(1, 0, [120, 20, 4, 4], uncertain=True),
        person(2, 0, [200, 100, 50, 40], ignore=True),
        person(3, 1, [5, 5, 0, 4]),
    ]
    parts = [
        {"id": i, "file_name": "bb_1.jpg", "width": 160, "height": 128, "corner": corner}
        for i, corner in enumerate([[0, 0, 160, 128], [140, 0, 300, 128]])
    ]
    cut = [person(0, 0, [10, 12, 3, 7]), person(1, 1, [5, 20, 4, 4]), person(2, 1, [60, 100, 50, 28], ignore=True)]
    folder = root / "mini_annotations"
    for name, images, objects in (
        ("train_all_erase", whole, people),
        ("train_sw640_sh512_all_erase", parts, cut),
        ("train_sw640_sh512_all_erase_coarse", parts, []),
    ):
        content = {"images": images, "annotations": objects, "categories": CATEGORIES}
        write(folder / f"tiny_set_{name}.json", content)
    test = [{"id": 0, "file_name": "bb_3.jpg", "width": 300, "height": 200}]
    content = {"images": test, "annotations": [person(0, 0, [1, 2, 3, 4])], "categories": CATEGORIES}
    write(folder / "tiny_set_test_all.json", content)


def test_parts_of_images(tmp_path: Path) -> None:
    tree(tmp_path / "tiny_set")
    manifest = run("auto", tmp_path / "tiny_set", tmp_path / "out")
    assert contents(tmp_path / "out", "train") == {
        "bb_1__0_0.png": [("person", [10, 12, 3, 7], 0)],
        "bb_1__140_0.png": [("person", [5, 20, 4, 4], 0), ("person", [60, 100, 50, 28], 1)],
    }
    assert contents(tmp_path / "out", "test") == {"bb_3.jpg": [("person", [1, 2, 3, 4], 0)]}
    erased = tmp_path / "tiny_set" / "erase_with_uncertain_dataset" / "train" / "bb_1.jpg"
    with Image.open(erased) as image, Image.open(tmp_path / "out" / "train" / "bb_1__140_0.png") as part:
        assert part.tobytes() == image.crop((140, 0, 300, 128)).tobytes()
    assert manifest["fixed_or_dropped"] == {"file_of_another_form_of_the_same_images": 1, "ignored_region": 1}
    assert "train: mini_annotations/tiny_set_train_sw640_sh512_all_erase.json" in manifest["remarks"]


def test_whole_images_are_cut_into_tiles(tmp_path: Path) -> None:
    tree(tmp_path / "tiny_set")
    manifest = run("tinyperson", tmp_path / "tiny_set", tmp_path / "out", "--tile", 150, "--overlap", 50)
    found = contents(tmp_path / "out", "train")
    assert found["bb_1__0_0.png"] == [("person", [10, 12, 3, 7], 0), ("person", [120, 20, 4, 4], 1)]
    assert found["bb_1__150_50.png"] == [("person", [50, 50, 50, 40], 1)]
    assert found["p_2__0_0.png"] == []
    notes = manifest["fixed_or_dropped"]
    assert (notes["box_without_area"], notes["ignored_region"], notes["uncertain_object"]) == (1, 1, 1)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"corner": [0, 0, 160]}, r"images\[0\]: corner \[0, 0, 160\] is not \[x0, y0, x1, y1\]"),
        ({"corner": [160, 0, 100, 9]}, r"images\[0\]: corner \[160, 0, 100, 9\] is no part of an image"),
        ({"file_name": "bb_9.jpg"}, r"images\[0\]: 'bb_9\.jpg': no such image"),
    ],
)
def test_faults(entry: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree(tmp_path / "tiny_set")
    images = [{"id": 0, "file_name": "bb_1.jpg"} | entry]
    content = {"images": images, "annotations": [person(0, 0, [1, 2, 3, 4])], "categories": CATEGORIES}
    write(tmp_path / "tiny_set" / "mini_annotations" / "tiny_set_train_sw640_sh512_all_erase.json", content)
    run("tinyperson", tmp_path / "tiny_set", tmp_path / "out", code=3)
    assert re.search(message, capsys.readouterr().err)
