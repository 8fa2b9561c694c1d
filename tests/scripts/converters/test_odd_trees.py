"""Odd trees as people have them: none is read wrongly in silence, and none is refused for a thing beside it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.scripts.converters.trees import contents, draw, run, write

LINE = "0 0.5 0.5 0.2 0.2\n"


def yolo(root: Path, *names: str, label: str = LINE, yaml: str = "names: [car, bus]\n") -> None:
    """images/SPLIT/NAME with labels beside them."""
    for name in names or ("train/a.png", "val/b.png"):
        draw(root / "images" / name)
        write((root / "labels" / name).with_suffix(".txt"), label)
    write(root / "data.yaml", yaml)


def voc(path: Path, image: str, *, cls: str = "car", left: int = 5) -> None:
    box = f"<xmin>{left}</xmin><ymin>5</ymin><xmax>{left + 20}</xmax><ymax>25</ymax>"
    write(
        path,
        f"<annotation><filename>{image}</filename><object><name>{cls}</name><bndbox>{box}</bndbox></object>"
        "</annotation>",
    )


def coco(path: Path, *names: str, left: int = 5, **more: Any) -> None:
    images = [{"id": number, "file_name": name, "width": 80, "height": 60} for number, name in enumerate(names)]
    boxes = [
        {"id": i, "image_id": i, "category_id": 1, "bbox": [left, 5, 20, 20], "area": 400, "iscrowd": 0}
        for i in range(len(names))
    ]
    write(path, {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "car"}]} | more)


def classes(found: dict[str, list[tuple[str, list[float], int]]]) -> list[str]:
    return sorted(name for objects in found.values() for name, _, _ in objects)


def test_voc_files_of_equal_stems_are_both_read(tmp_path: Path) -> None:
    for split, left in (("train", 5), ("test", 40)):
        draw(tmp_path / "tree" / split / "1.png")
        voc(tmp_path / "tree" / split / "1.xml", "1.png", left=left)
    run("voc", tmp_path / "tree", tmp_path / "out")
    assert [contents(tmp_path / "out", split)["1.png"][0][1][0] for split in ("train", "test")] == [4, 39]


def test_names_with_dots_are_not_taken_for_endings(tmp_path: Path) -> None:
    draw(tmp_path / "tree" / "scene.png")
    for number in (1, 2):
        draw(tmp_path / "tree" / f"scene.{number}.png")
        voc(tmp_path / "tree" / f"scene.{number}.xml", f"scene.{number}.png", left=10 * number)
    manifest = run("voc", tmp_path / "tree", tmp_path / "out")
    assert sum(split["images"] for split in manifest["splits"].values()) == 2
    found = contents(tmp_path / "out", "train") | contents(tmp_path / "out", "val")
    assert {name: objects[0][1][0] for name, objects in found.items()} == {"scene.1.png": 9, "scene.2.png": 19}


def test_cvat_folders_decide_on_the_split(tmp_path: Path) -> None:
    for split in ("train", "val"):
        draw(tmp_path / "tree" / split / "images" / f"{split}.png")
        coco(tmp_path / "tree" / split / "annotations" / "instances_default.json", f"{split}.png")
    run("coco", tmp_path / "tree", tmp_path / "out")
    assert list(contents(tmp_path / "out", "val")) == ["val.png"]


def test_darknet_files_side_by_side(tmp_path: Path) -> None:
    for split in ("train", "val"):
        root = tmp_path / "tree" / split
        draw(root / "obj" / f"{split}.png")
        write(root / "obj" / f"{split}.txt", LINE)
        write(root / "train.txt", f"obj/{split}.png\n")
        write(root / "obj.names", "\ufeffcar\n")
        write(root / "obj.data", "classes = 1\ntrain = train.txt\nnames = obj.names\n")
    manifest = run("auto", tmp_path / "tree", tmp_path / "out")
    assert manifest["classes"] == ["car"]
    assert list(contents(tmp_path / "out", "val")) == ["val.png"]


def test_a_darknet_file_of_any_name(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        draw(tmp_path / "tree" / "pictures" / f"{name}.png")
        write(tmp_path / "tree" / "pictures" / f"{name}.txt", LINE)
    write(tmp_path / "tree" / "lists" / "held_out.txt", "pictures/b.png\n")
    write(tmp_path / "tree" / "lists" / "rest.txt", "pictures/a.png\n")
    write(tmp_path / "tree" / "cfg" / "my.names", "car\n")
    write(tmp_path / "tree" / "my.data", "train=lists/rest.txt\nvalid=lists/held_out.txt\nnames=/other/cfg/my.names\n")
    run("auto", tmp_path / "tree", tmp_path / "out")
    assert [list(contents(tmp_path / "out", split)) for split in ("train", "val")] == [["a.png"], ["b.png"]]


@pytest.mark.parametrize(
    ("names", "number", "name"),
    [
        ("{'0': a, '1': b, '2': c, '10': k}", 2, "c"),  # as text, 10 sorts before 2
        ("{0: a, 2: c, 10: k}", 2, "c"),  # with holes
        ("{0: a, 2: c, 10: k}", 10, "k"),
        ("[yes, no, 3]", 2, "3"),
    ],
)
def test_class_names_by_number(tmp_path: Path, names: str, number: int, name: str) -> None:
    yolo(tmp_path / "tree", label=f"{number} 0.5 0.5 0.2 0.2\n", yaml=f"names: {names}\n")
    run("yolo", tmp_path / "tree", tmp_path / "out")
    assert classes(contents(tmp_path / "out", "train")) == [name]


def test_chosen_classes_of_yolo_keep_their_names(tmp_path: Path) -> None:
    yolo(tmp_path / "tree", label=f"{LINE}1 0.2 0.2 0.1 0.1\n")
    manifest = run("yolo", tmp_path / "tree", tmp_path / "out", "--classes", "bus")
    assert classes(contents(tmp_path / "out", "train")) == ["bus"]
    assert manifest["fixed_or_dropped"] == {"class_not_chosen: car": 2}


def test_chosen_classes_of_visdrone(tmp_path: Path) -> None:
    for split in ("train", "val"):
        draw(tmp_path / "tree" / f"VisDrone2019-DET-{split}" / "images" / "1.png")
        write(
            tmp_path / "tree" / f"VisDrone2019-DET-{split}" / "annotations" / "1.txt",
            "5,5,20,20,1,4,0,0\n40,5,20,20,1,1,0,0\n",
        )
    manifest = run("visdrone", tmp_path / "tree", tmp_path / "out", "--classes", "car")
    assert manifest["classes"] == ["car"]
    assert manifest["fixed_or_dropped"] == {"class_not_chosen: pedestrian": 2}


def test_keypoints_are_no_polygons(tmp_path: Path) -> None:
    label = "0 0.5 0.5 0.2 0.2 0.1 0.1 2 0.9 0.9 2\n"
    yolo(tmp_path / "tree", label=label, yaml="names: [car]\nkpt_shape: [2, 3]\n")
    run("yolo", tmp_path / "tree", tmp_path / "out")
    assert contents(tmp_path / "out", "train")["a.png"][0][1] == pytest.approx([32, 24, 16, 12])


def test_visdrone_as_ultralytics_converts_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["pedestrian", "people", "bicycle", "car", "van", "truck", "tricycle", "awning-tricycle", "bus", "motor"]
    label = "3 0.2 0.2 0.1 0.1\n10 0.6 0.6 0.2 0.2\n"
    yolo(tmp_path / "tree", label=label, yaml=f"names: {names}\n")
    manifest = run("yolo", tmp_path / "tree", tmp_path / "out")
    assert manifest["fixed_or_dropped"] == {"others_as_ignored_region": 2}
    assert manifest["splits"]["train"]["ignored"] == 10  # of every class
    assert "class 10, others, is ignored; its ignored regions were lost before" in capsys.readouterr().out


def test_tiles_of_images_that_differ_in_their_endings(tmp_path: Path) -> None:
    yolo(tmp_path / "tree", "train/p.png", "val/q.png")
    draw(tmp_path / "tree" / "images" / "train" / "p.jpg")
    manifest = run("yolo", tmp_path / "tree", tmp_path / "out", "--tile", 64, "--overlap", 8)
    assert manifest["splits"]["train"]["images"] == len(list((tmp_path / "out" / "train").iterdir())) == 4


def test_a_changed_source_is_not_taken_for_the_old_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yolo(tmp_path / "tree")
    run("yolo", tmp_path / "tree", tmp_path / "out")
    write(tmp_path / "tree" / "labels" / "train" / "a.txt", LINE + LINE.replace("0.5", "0.2"))
    run("yolo", tmp_path / "tree", tmp_path / "out", code=3)
    assert "of files that have changed; choose another --out or add --force" in capsys.readouterr().err
    for _ in range(2):  # --force makes it again
        run("yolo", tmp_path / "tree", tmp_path / "out", "--force")
        assert len(contents(tmp_path / "out", "train")["a.png"]) == 2
    assert "nothing to do" not in capsys.readouterr().out


def test_two_versions_of_a_split_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "tree" / "images" / "a.png")
    for version in ("aitod_train_v1", "aitodv2_train"):
        coco(tmp_path / "tree" / "annotations" / f"{version}.json", "a.png")
    run("coco", tmp_path / "tree", tmp_path / "out", code=3)
    assert "lists 1 images that another file of train lists too, for example a.png" in capsys.readouterr().err


def test_coco_with_captions_and_keypoints_beside_the_instances(tmp_path: Path) -> None:
    for split in ("train", "val"):
        draw(tmp_path / "tree" / f"{split}2017" / "1.png")  # equal names in both
        coco(tmp_path / "tree" / "annotations" / f"instances_{split}2017.json", "1.png", left=5 + (split == "val"))
        coco(tmp_path / "tree" / "annotations" / f"person_keypoints_{split}2017.json", "1.png")
        write(tmp_path / "tree" / "annotations" / f"captions_{split}2017.json", {"images": [], "annotations": []})
    run("auto", tmp_path / "tree", tmp_path / "out")
    assert [contents(tmp_path / "out", split)["1.png"][0][1][0] for split in ("train", "val")] == [5, 6]


def test_mmrotate_trainval_is_not_trained_on_beside_val(tmp_path: Path) -> None:
    for split in ("train", "val", "trainval"):
        for name in ("a", "b") if split == "trainval" else ("a" if split == "train" else "b",):
            draw(tmp_path / "tree" / split / "images" / f"{name}.png")
            write(tmp_path / "tree" / split / "annfiles" / f"{name}.txt", "5 5 25 5 25 25 5 25 plane 0\n")
    manifest = run("auto", tmp_path / "tree", tmp_path / "out")
    assert {split: each["images"] for split, each in manifest["splits"].items()} == {"train": 1, "val": 1}
    assert manifest["fixed_or_dropped"]["label_file_of_another_split_of_the_same_images"] == 2


def _coco_twice(root: Path) -> None:
    for folder in ("x", "y"):
        draw(root / folder / "1.png")
    coco(root / "train.json", "x/1.png", "y/1.png")


def _csv_twice(root: Path) -> None:
    rows = [f"{draw(root / folder / '1.png').relative_to(root)},5,5,25,25,car" for folder in ("x", "y")]
    write(root / "boxes.csv", "\n".join(["image_path,xmin,ymin,xmax,ymax,label", *rows]))


def _voc_twice(root: Path) -> None:
    for folder in ("x", "y"):
        draw(root / folder / "1.png")
        voc(root / folder / "1.xml", "1.png")


def _visdrone_twice(root: Path) -> None:
    for folder in ("x", "y"):
        draw(root / folder / "images" / "1.png")
        write(root / folder / "annotations" / "1.txt", "5,5,20,20,1,4,0,0\n")


def _dota_twice(root: Path) -> None:
    for split in ("train", "val"):
        draw(root / split / "images" / "1.png")
        write(root / split / "labelTxt" / "1.txt", "5 5 25 5 25 25 5 25 plane 0\n")


@pytest.mark.parametrize("layout", [_coco_twice, _csv_twice, _voc_twice, _visdrone_twice])
def test_equal_names_in_two_folders(tmp_path: Path, layout: Callable[[Path], None]) -> None:
    layout(tmp_path / "tree")
    run("auto", tmp_path / "tree", tmp_path / "out", "--val-share", "0.5")
    found = {**contents(tmp_path / "out", "train"), **contents(tmp_path / "out", "val")}
    assert [name.split("/")[0] for name in sorted(found)] == ["x", "y"]


def test_equal_names_of_two_splits_that_are_made_anew(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for name in ("a1", "b1"):
            draw(tmp_path / "tree" / split / "images" / f"{name}.png")
            write(tmp_path / "tree" / split / "labelTxt" / f"{name}.txt", "5 5 25 5 25 25 5 25 plane 0\n")
    run("auto", tmp_path / "tree", tmp_path / "out", "--split-by", "[ab]")
    names = [sorted(contents(tmp_path / "out", split)) for split in ("train", "val")]
    assert [len(each) for each in names] == [2, 2]
    assert all(len({name.rpartition("/")[2] for name in each}) == 1 for each in names)


def test_a_foreign_csv_and_files_of_macos_stop_no_other_kind(tmp_path: Path) -> None:
    yolo(tmp_path / "tree")
    (tmp_path / "tree" / "notes.csv").write_bytes("h\xf6he;m\n1;2\n".encode("latin-1"))
    for name in ("._notes.csv", "labels/train/._a.txt", "images/train/._a.png", "._x.data", "annotations/._1.txt"):
        write(tmp_path / "tree" / name, "\0\1")
    (tmp_path / "tree" / "labels" / "train" / "._a.txt").write_bytes(b"\xff\xfe\0")
    write(tmp_path / "tree" / "broken.json", "{")
    write(tmp_path / "tree" / "pom.xml", "<project/>")
    write(tmp_path / "tree" / "bad.xml", "<")
    write(tmp_path / "tree" / ".idea" / "x.xml", "<")
    write(tmp_path / "tree" / "README.roboflow.txt", "Exported\n")
    manifest = run("auto", tmp_path / "tree", tmp_path / "out")
    assert manifest["options"]["kind"] == "yolo"
    assert manifest["fixed_or_dropped"] == {}


def test_a_csv_that_is_not_utf_8_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path / "tree" / "a.png")
    rows = "image_path,xmin,ymin,xmax,ymax,label\na.png,5,5,25,25,h\xf6he\n"
    (tmp_path / "tree").joinpath("x.csv").write_bytes(rows.encode("latin-1"))
    run("csv", tmp_path / "tree", tmp_path / "out", code=3)
    assert "x.csv: is not UTF-8" in capsys.readouterr().err


def test_boxes_beyond_the_border_are_clipped(tmp_path: Path) -> None:
    yolo(tmp_path / "tree", label="0 0.98 0.5 0.2 0.2\n")
    manifest = run("yolo", tmp_path / "tree", tmp_path / "out")
    assert manifest["fixed_or_dropped"] == {"box_clipped": 2}
    assert contents(tmp_path / "out", "train")["a.png"][0][1] == pytest.approx([70.4, 24, 9.6, 12], abs=0.01)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n"])
@pytest.mark.parametrize("layout", ["yolo", "coco"])
def test_bad_images_are_dropped_where_that_is_asked_for(tmp_path: Path, content: bytes, layout: str) -> None:
    root = tmp_path / "tree"
    if layout == "yolo":
        yolo(root, "train/a.png", "train/bad.png", "val/b.png")
        (root / "images" / "train" / "bad.png").write_bytes(content)
    else:
        for name in ("a.png", "bad.png"):
            draw(root / "train" / name)
        draw(root / "val" / "b.png")
        coco(root / "train" / "x.json", "a.png", "bad.png", "gone.png")
        coco(root / "val" / "x.json", "b.png")
        (root / "train" / "bad.png").write_bytes(content)
    run(layout, root, tmp_path / "out", code=3)
    manifest = run(layout, root, tmp_path / "out", "--skip-bad")
    assert manifest["fixed_or_dropped"]["unreadable_image"] == 1
    assert list(contents(tmp_path / "out", "train")) == ["a.png"]


def test_an_annotation_without_a_box_is_dropped(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw(tmp_path / "tree" / name)
    coco(tmp_path / "tree" / "x.json", "a.png", "b.png")
    content = json.loads((tmp_path / "tree" / "x.json").read_text())
    content["annotations"] += [{"id": 7, "image_id": 0, "category_id": 1, "bbox": None, "segmentation": []}]
    write(tmp_path / "tree" / "x.json", content)
    manifest = run("coco", tmp_path / "tree", tmp_path / "out")
    assert manifest["fixed_or_dropped"] == {"annotation_without_box": 1}


@pytest.mark.parametrize("folder", ["Labels", "LABELS"])
def test_labels_in_capitals_and_label_files_that_are_called_like_lists(tmp_path: Path, folder: str) -> None:
    yolo(tmp_path / "tree", "train/test_0.png", "val/b.png")
    (tmp_path / "tree" / "labels").rename(tmp_path / "tree" / folder)
    manifest = run("yolo", tmp_path / "tree", tmp_path / "out")
    assert manifest["fixed_or_dropped"] == {}
    assert classes(contents(tmp_path / "out", "train")) == ["car"]


def test_a_missing_valid_folder_is_made_up_from_train(tmp_path: Path) -> None:
    yolo(
        tmp_path / "tree",
        "train/a.png",
        "train/b.png",
        yaml="train: images/train\nval: ../valid/images\nnames: [car]\n",
    )
    manifest = run("yolo", tmp_path / "tree", tmp_path / "out")
    assert manifest["fixed_or_dropped"] == {"missing_val_split": 1}
    assert manifest["splits"]["val"]["images"] == 1


def test_out_inside_the_source_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yolo(tmp_path / "tree")
    run("yolo", tmp_path / "tree", tmp_path / "tree" / "out", code=2)
    assert "lies inside" in capsys.readouterr().err


def test_the_last_line_can_be_pasted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yolo(tmp_path / "tree")
    run("yolo", tmp_path / "tree", tmp_path / "my data" / "out")
    assert capsys.readouterr().out.splitlines()[-1].startswith("python main.py --config '")


def test_an_unknown_chosen_class_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yolo(tmp_path / "tree")
    run("yolo", tmp_path / "tree", tmp_path / "out", "--classes", "plane", code=3)
    assert "--classes plane: " in capsys.readouterr().err
