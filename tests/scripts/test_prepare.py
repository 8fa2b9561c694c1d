"""scripts/prepare.py: trees in real layouts, with their quirks, become data sets that train."""

import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import main
from configs.loader import load_config
from scripts import prepare
from scripts.support.splits import divide, group_of

WIDTH, HEIGHT = 80, 60
BOX = (10.0, 12.0, 20.0, 26.0)
"""xyxy px of the first object of every tree"""


def draw(path: Path, *, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(zlib.crc32(str(path).encode())).integers(
        0, 80, (size[1], size[0], 3), dtype=np.uint8
    )
    pixels[12:26, 10:20] = 220
    Image.fromarray(pixels).save(path)
    return path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def yolo_line(label: int = 0, box: tuple[float, ...] = BOX) -> str:
    x0, y0, x1, y1 = box
    values = (x0 + x1) / 2 / WIDTH, (y0 + y1) / 2 / HEIGHT, (x1 - x0) / WIDTH, (y1 - y0) / HEIGHT
    return f"{label} {' '.join(f'{value:.8f}' for value in values)}\n"


def roboflow(root: Path) -> None:
    """`../train/images`, a polygon, a picture without a label file, `valid`."""
    write(root / "data.yaml", "train: ../train/images\nval: ../valid/images\nnc: 2\nnames: ['car', 'small bus']\n")
    for split, number in (("train", 4), ("valid", 2)):
        for i in range(number):
            draw(root / split / "images" / f"{split}{i}.jpg")
            text = (
                yolo_line(1)
                if i
                else f"0 {10 / 80} {12 / 60} {20 / 80} {12 / 60} {20 / 80} {26 / 60} {10 / 80} {26 / 60}\n"
            )
            write(root / split / "labels" / f"{split}{i}.txt", text)
    draw(root / "train" / "images" / "background.jpg")


def ultralytics(root: Path) -> None:
    """`path` of another machine, names as a dict, lists, images/ and labels/ at the top, an empty label file."""
    write(
        root / "my set.yaml",
        "path: /home/somebody/my_set\ntrain: train.txt\nval: images/val\nnames: {1: bus, 0: car}\n",
    )
    for split, number in (("train", 3), ("val", 2)):
        for i in range(number):
            draw(root / "images" / split / f"{i}.png")
            write(root / "labels" / split / f"{i}.txt", yolo_line(1) if i else "")
    write(root / "train.txt", "".join(f"/home/somebody/my_set/images/train/{i}.png\n" for i in range(3)))


def cvat(root: Path) -> None:
    """obj.data, whose paths begin with data/."""
    write(root / "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    write(root / "obj.names", "car\nbus\n")
    write(root / "train.txt", "".join(f"data/obj_train_data/{i}.png\n" for i in range(5)))
    for i in range(5):
        draw(root / "obj_train_data" / f"{i}.png")
        write(root / "obj_train_data" / f"{i}.txt", yolo_line(i % 2))


def darknet(root: Path) -> None:
    """Pictures and text side by side, a list with a folder that does not exist, text without a picture."""
    write(root / "my.names", "car\nbus\n")
    for i in range(6):
        draw(root / f"seq{i // 2}-{i}.JPG")
        write(root / f"seq{i // 2}-{i}.txt", yolo_line(0) + yolo_line(1, (70, 50, 80.4, 58)))
    write(root / "lost.txt", yolo_line())
    write(root / "train1.txt", "else/seq0-0.JPG\nelse/seq0-1.JPG\nelse/seq1-2.JPG\nelse/seq1-3.JPG\nelse/gone.JPG\n")
    write(root / "test1.txt", "else/seq2-4.JPG\nelse/seq2-5.JPG\nelse/seq0-0.JPG\n")


def voc(root: Path) -> None:
    """Names in two spellings, difficult objects, a box without area, trainval beside train and val."""
    for i in range(4):
        draw(root / "JPEGImages" / f"{i}.jpg")
        box = "<bndbox><xmin>11</xmin><ymin>13.0</ymin><xmax>20</xmax><ymax>26</ymax></bndbox>"
        flat = "<bndbox><xmin>30</xmin><ymin>13</ymin><xmax>29</xmax><ymax>13</ymax></bndbox>"
        objects = f"<object><name>{'Car' if i else 'car'}</name>{box}<difficult>0</difficult></object>"
        objects += f"<object><name>bus</name>{box}<difficult>1</difficult></object>"
        objects += f"<object><name>bus</name>{flat}</object>" * (i == 0)
        write(root / "Annotations" / f"{i}.xml", f"<annotation><filename>wrong.png</filename>{objects}</annotation>")
    for name, stems in (("train", "0 1 2"), ("val", "3"), ("trainval", "0 1 2 3")):
        write(root / "ImageSets" / "Main" / f"{name}.txt", "\n".join(stems.split()) + "\n")


def coco_annotation(number: int, image: Any, category: Any, **more: Any) -> dict[str, Any]:
    return {"id": number, "image_id": image, "category_id": category, "bbox": [10, 12, 10, 14]} | more


def exported_coco(root: Path) -> None:
    """A root category without boxes, ids as text, null iscrowd, a polygon alone, a hashed and a backslash name, a
    negative size."""
    for split in ("train", "valid"):
        names = ["a.png", "b.png", "c.png"]
        for name in names:
            draw(root / split / name)
        listed = ["a.png", "x\\y\\b.png", "0123456789ab-c.png"]
        images = [{"id": i, "file_name": n, "width": WIDTH, "height": HEIGHT} for i, n in enumerate(listed)]
        annotations = [
            coco_annotation(0, 0, "1", iscrowd=None),
            coco_annotation(1, "1", 2, bbox=[20, 26, -10, -14]),
            coco_annotation(2, 2, 1, bbox=[], segmentation=[[10, 12, 20, 12, 20, 26, 10, 26]]),
            coco_annotation(3, 2, 2, iscrowd=1),
            coco_annotation(4, 99, 1),
        ]
        categories = [{"id": 0, "name": "traffic", "supercategory": "none"}]
        categories += [{"id": i, "name": n, "supercategory": "traffic"} for i, n in ((1, "car"), (2, "bus"))]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write(root / split / "_annotations.coco.json", json.dumps(content))


def aitod(root: Path) -> None:
    """Four files under the names of the devkit, ids from 0, `ignore`, images in images/."""
    members = {"train": (0,), "val": (1,), "trainval": (0, 1), "test": (2,)}
    categories = [{"id": 1, "name": "airplane"}, {"id": 6, "name": "vehicle"}]
    for split, numbers in members.items():
        images = [
            {"id": i, "file_name": f"{n}__0_0.png", "width": WIDTH, "height": HEIGHT} for i, n in enumerate(numbers)
        ]
        annotations = [coco_annotation(2 * i, i, 6) for i in range(len(numbers))]
        annotations += [coco_annotation(2 * i + 1, i, 1, bbox=[40, 40, 4, 4], ignore=1) for i in range(len(numbers))]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write(root / "annotations" / f"aitodv2_{split}.json", json.dumps(content))
    for split, numbers in (("trainval", (0, 1)), ("test", (2,))):
        for number in numbers:
            draw(root / "images" / split / f"{number}__0_0.png")


def visdrone(root: Path) -> None:
    """A comma at the end, an ignored region, score 0, others, a zero height."""
    for split in ("train", "val"):
        folder = root / f"VisDrone2019-DET-{split}"
        for i in range(2):
            draw(folder / "images" / f"{i}.jpg")
            lines = [
                "10,12,10,14,1,4,0,0,",
                "40,40,10,10,0,0,0,0",
                "30,5,6,6,0,5,0,0",
                "50,5,6,6,1,11,0,0",
                "9,9,4,0,1,1,0,0",
            ]
            write(folder / "annotations" / f"{i}.txt", "\n".join(lines) + "\n")


def dota(root: Path) -> None:
    """Header lines or none, a name with a blank, difficult, corners outside, an empty file, png and jpg, _hbb."""
    for split in ("train", "val"):
        for i, suffix in enumerate((".png", ".jpg", ".png")):
            draw(root / split / "images" / f"P{i}{suffix}", size=(300, 200))
            header = "imagesource:GoogleEarth\ngsd:null\n" if i == 0 else ""
            lines = "10.0 12.0 20.0 12.0 20.0 26.0 10.0 26.0 plane 0\n-5 50 20 50 20 60 -5 60 storage tank 0\n"
            lines += "100 100 110 100 110 110 100 110 plane 1\n" if i == 0 else ""
            write(root / split / "labelTxt-v1.5" / f"P{i}.txt", header + lines if i < 2 else "")
            write(root / split / "labelTxt-v1.5" / "DOTA_hbb" / f"P{i}.txt", lines)


def table(root: Path) -> None:
    """The columns of a prediction, and an image without a box."""
    header = "image_path,xmin,ymin,xmax,ymax,score,label\n"
    for split, number in (("train", 3), ("val", 1)):
        rows = "".join(f"sub/{split}{i}.png,10.0,12.0,20.0,26.0,0.9,{'car' if i else 'bus'}\n" for i in range(number))
        write(root / f"{split}.csv", header + rows + f"sub/{split}9.png,,,,,,\n")
        for i in (*range(number), 9):
            draw(root / "sub" / f"{split}{i}.png")


Layout = Callable[[Path], None]
TREES: dict[str, tuple[Layout, str, dict[str, int], dict[str, int]]] = {
    # layout, kind, objects of the training split per class, what was fixed or dropped
    "roboflow": (roboflow, "yolo", {"car": 1, "small bus": 3}, {"image_without_label_file": 1, "polygon_to_box": 2}),
    "ultralytics": (ultralytics, "yolo", {"car": 0, "bus": 2}, {}),
    "cvat": (cvat, "yolo", {}, {}),
    "darknet": (
        *(darknet, "yolo", {"car": 4, "bus": 4}),
        {
            "box_clipped": 7,
            "image_in_two_splits": 1,
            "label_file_without_image": 1,
            "listed_image_missing": 1,
        },
    ),
    "voc": (voc, "voc", {"bus": 0, "Car": 3}, {"box_without_area": 1, "class_names_that_differ_in_case": 1}),
    "coco": (
        *(exported_coco, "coco", {"car": 2, "bus": 1}),
        {
            "annotation_of_unknown_image": 2,
            "box_from_segmentation": 2,
            "category_without_boxes: traffic": 2,
            "image_found_elsewhere": 4,
            "negative_size_turned": 2,
        },
    ),
    "aitod": (
        *(aitod, "aitod", {"airplane": 0, "vehicle": 2}),
        {"file_of_another_split_of_the_same_images": 2, "ignored_object": 3},
    ),
    "visdrone": (
        *(visdrone, "visdrone", {"car": 2, "pedestrian": 0}),
        {
            "box_without_area": 4,
            "ignored_object": 4,
            "ignored_region": 4,
            "others_as_ignored_region": 4,
            "trailing_comma": 4,
        },
    ),
    "dota": (
        *(dota, "dota", {"plane": 2, "storage-tank": 2}),
        {"corners_outside_clipped": 4, "empty_label_file": 2},
    ),
    "csv": (table, "csv", {"bus": 1, "car": 2}, {}),
}


def prepared(root: Path, out: Path, *more: object, kind: str = "auto", code: int = 0) -> dict[str, Any]:
    """Run the command; returns the manifest."""
    assert prepare.main([kind, str(root), "--out", str(out), *map(str, more)]) == code
    return json.loads((out / "manifest.json").read_text()) if code == 0 else {}


@pytest.mark.parametrize("name", TREES)
def test_a_misspelled_class_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, kind, per_class, _ = TREES[name]
    layout(tmp_path / "tree")
    classes = [*list(per_class)[:1], "unicorn"]
    prepared(tmp_path / "tree", tmp_path / "mine", "--small", "--classes", ",".join(classes), kind=kind, code=3)
    assert "--classes unicorn: " in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_a_tree_of_one_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is refused, with the option that divides it."""
    for number in range(4):
        write(tmp_path / "tree" / "valid" / "labels" / f"{number}.txt", yolo_line())
        draw(tmp_path / "tree" / "valid" / "images" / f"{number}.png")
    write(tmp_path / "tree" / "data.yaml", "val: valid/images\nnames: [car]\n")
    prepared(tmp_path / "tree", tmp_path / "mine", code=3)
    assert "no training images, only val; --split-by '.*' divides all" in capsys.readouterr().err
    found = prepared(tmp_path / "tree", tmp_path / "mine", "--split-by", ".*")
    assert {name: each["images"] for name, each in found["splits"].items()} == {"train": 3, "val": 1}


@pytest.mark.parametrize("detector", ["dino", "dino_d3q", "deformable_detr", "deformable_detr_d3q"])
def test_scores_are_corrected_where_the_classifier_allows_it(detector: str, tmp_path: Path) -> None:
    roboflow(tmp_path / "tree")
    prepared(tmp_path / "tree", tmp_path / "mine", "--detector", detector)
    config = load_config(tmp_path / "mine" / f"{detector}_mine.yaml")
    assert (config.evaluation.scores == "corrected") == (config.criterion.decoder.classification == "softmax")
    assert (config.criterion.count_weight > 0) == detector.endswith("_d3q")


@pytest.mark.parametrize("name", TREES)
def test_a_tree_becomes_a_data_set(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, kind, per_class, notes = TREES[name]
    root, out = tmp_path / "any name", tmp_path / "out" / "mine"
    layout(root)
    manifest = prepared(root, out, "--small")
    printed = capsys.readouterr().out
    assert f"taken for {kind}: " in printed
    assert printed.splitlines()[-1] == f"python main.py --config {out / 'dino_d3q_mine.yaml'}"
    found = manifest["splits"]["train"]["per_class"]
    assert {cls: found[cls] for cls in per_class} == per_class
    assert manifest["fixed_or_dropped"] == notes
    assert sorted(path.name for path in (out / "annotations").iterdir()) == sorted(
        f"{split}.json" for split in manifest["splits"]
    )
    train = json.loads((out / "annotations" / "train.json").read_text())
    boxes = np.array([each["bbox"] for each in train["annotations"] if not each["iscrowd"]])
    nearest = np.abs(boxes - [BOX[0], BOX[1], BOX[2] - BOX[0], BOX[3] - BOX[1]]).max(axis=1).min()
    assert nearest < 0.011, "the first object of the tree is not where it was drawn"
    for image in train["images"]:
        with Image.open(out / "train" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
    with Image.open(out / "samples.jpg") as sheet:
        assert sheet.width > 300


@pytest.mark.parametrize("name", ["darknet", "visdrone", "dota", "voc", "coco", "csv"])
def test_the_experiment_checks_trains_and_evaluates(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ignored objects and regions among them. Without the backbone's weights, and smaller."""
    monkeypatch.chdir(tmp_path)
    TREES[name][0](tmp_path / "tree")
    prepared(
        tmp_path / "tree", Path("data") / "mine", "--small", *(["--tile", 128, "--overlap", 28] * (name == "dota"))
    )
    small = ["model.backbone.weights=null", "optim.epochs=1", "optim.lr_drop_epochs=[]", "runtime.device=cpu"]
    small += ["evaluation.gallery_images=0", "data.image_size=[64,64]"]
    command = ["--config", "data/mine/dino_d3q_mine.yaml", "--set", *small]
    assert main.main([*command, "--check-full"]) == 0
    assert main.main(command) == 0
    report = json.loads((tmp_path / "runs" / "dino_d3q_mine" / "evaluation" / "evaluation.json").read_text())
    assert report["protocol"] == "aitod"
    assert 0 <= report["detection"]["mAP"] <= 1


def test_regions_are_crowds_of_every_class(tmp_path: Path) -> None:
    visdrone(tmp_path / "tree")
    manifest = prepared(tmp_path / "tree", tmp_path / "out", kind="visdrone")
    train = json.loads((tmp_path / "out" / "annotations" / "train.json").read_text())
    crowds = [each for each in train["annotations"] if each["iscrowd"] and each["image_id"] == 1]
    assert len(crowds) == 10 + 10 + 1  # an ignored region, others, an object of score 0
    assert {each["category_id"] for each in crowds if each["bbox"][0] == 40} == set(range(1, 11))
    assert manifest["splits"]["train"]["ignored"] == 2 * 21
    with_others = prepared(tmp_path / "tree", tmp_path / "eleven", "--num-classes", 11, kind="visdrone")
    assert with_others["splits"]["train"]["per_class"]["others"] == 2


def test_tiles_keep_ignore_or_drop_what_they_cut(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    draw(root / "train" / "images" / "P.png", size=(300, 100))
    draw(root / "val" / "images" / "Q.png", size=(100, 100))
    lines = "0 0 10 0 10 10 0 10 plane 0\n92 0 102 0 102 10 92 10 plane 0\n96 20 106 20 106 30 96 30 plane 0\n"
    for split, name in (("train", "P"), ("val", "Q")):
        write(root / split / "labelTxt" / f"{name}.txt", lines)
    manifest = prepared(root, tmp_path / "out", "--tile", 100, "--overlap", 0)
    train = json.loads((tmp_path / "out" / "annotations" / "train.json").read_text())
    assert [image["file_name"] for image in train["images"]] == [f"P__{x}_0.png" for x in (0, 100, 200)]
    found = [(each["image_id"], each["bbox"], each["iscrowd"]) for each in train["annotations"]]
    assert found == [
        (1, [0, 0, 10, 10], 0),
        (1, [92, 0, 8, 10], 0),  # 80 % of it
        (1, [96, 20, 4, 10], 1),  # 40 %
        (2, [0, 0, 2, 10], 1),
        (2, [0, 20, 6, 10], 1),
    ]
    assert manifest["fixed_or_dropped"]["object_cut_by_tile_ignored"] == 3


def test_a_validation_split_is_made_and_groups_stay_together(tmp_path: Path) -> None:
    cvat(tmp_path / "tree")
    manifest = prepared(tmp_path / "tree", tmp_path / "out")
    assert {name: each["images"] for name, each in manifest["splits"].items()} == {"train": 4, "val": 1}
    darknet(tmp_path / "drone")
    manifest = prepared(tmp_path / "drone", tmp_path / "drone-out", "--split-by", r"^seq\d")
    names = {
        split: {re.match(r"seq\d", image["file_name"])[0] for image in json.loads(path.read_text())["images"]}  # type: ignore[index]
        for split in ("train", "val")
        if (path := tmp_path / "drone-out" / "annotations" / f"{split}.json")
    }
    assert not names["train"] & names["val"]
    assert len(names["train"] | names["val"]) == 3
    assert any("split by" in remark for remark in manifest["remarks"])


@pytest.mark.parametrize(
    ("pattern", "name", "group"),
    [(None, "a/b.png", "a/b.png"), (r"^\w+", "a/b.png", "a"), (r"(\d+)-", "x12-7.png", "12"), ("z", "a.png", "a.png")],
)
def test_groups(pattern: str | None, name: str, group: str) -> None:
    assert group_of(name, pattern) == group


def test_the_same_seed_gives_the_same_split(tmp_path: Path) -> None:
    from scripts.support.raw_data import RawImage

    images = [RawImage.of_rows(tmp_path, f"{i}.png", []) for i in range(50)]
    first, again, other = (divide(images, 0.2, None, seed) for seed in (0, 0, 1))
    assert [i.name for i in first["val"]] == [i.name for i in again["val"]]
    assert [i.name for i in first["val"]] != [i.name for i in other["val"]]
    assert len(first["val"]) == 10


def break_yolo(old: str, new: str) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        path = root / "train" / "labels" / "train1.txt"
        path.write_text(path.read_text().replace(old, new))

    return change


def remove(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


BAD: dict[str, tuple[Layout, Callable[[Path], None], tuple[object, ...], int, str]] = {
    "unknown kind": (roboflow, lambda _: None, ("pascal",), 2, r"unknown kind 'pascal'; known are .*auto says: yolo"),
    "class out of range": (roboflow, break_yolo("1 ", "7 "), ("auto",), 3, r"train1\.txt:1: class 7, but there are 2"),
    "pixels": (roboflow, break_yolo("0.1", "40.1"), ("auto",), 3, r"train1\.txt:1: box .* is not within 0\.\.1"),
    "words": (roboflow, break_yolo("1 ", "car "), ("auto",), 3, r"train1\.txt:1: 'car .*' is not a line of numbers"),
    "three numbers": (
        roboflow,
        lambda r: write(r / "train/labels/train1.txt", "0 1 1"),
        ("auto",),
        3,
        r"3 numbers; a box",
    ),
    "broken image": (
        *(roboflow, lambda r: write(r / "train/images/train1.jpg", "no image"), ("auto",), 3),
        r"train1\.jpg: .*is not an image",
    ),
    "missing split": (
        *(roboflow, lambda r: write(r / "data.yaml", "train: a/images\nval: v\nnames: [a]\n"), ("auto",), 3),
        r"data\.yaml: train: a/images: no such folder or list",
    ),
    "no names": (darknet, remove("my.names"), ("yolo",), 3, r"no class names: .* give --classes a,b,c"),
    "nothing": (
        lambda r: write(r / "a.md", "x"),
        lambda _: None,
        ("auto",),
        3,
        r"none of yolo, .* fits; it holds \.md",
    ),
    "bad xml": (
        voc,
        lambda r: write(r / "Annotations/1.xml", "<annotation>"),
        ("voc",),
        3,
        r"1\.xml: cannot be read as XML",
    ),
    "bad json": (
        exported_coco,
        lambda r: write(r / "train/x.json", "{"),
        ("coco",),
        3,
        r"x\.json: cannot be read as JSON",
    ),
    "size differs": (
        *(exported_coco, lambda r: draw(r / "train/a.png", size=(60, 80)) and None, ("coco",), 3),
        r"images\[0\]: a\.png is 60 x 80 px, but the file says 80 x 60",
    ),
    "image missing": (exported_coco, remove("train/a.png"), ("coco",), 3, r"images\[0\]: 'a\.png': no such image"),
    "visdrone words": (
        *(visdrone, lambda r: write(r / "VisDrone2019-DET-train/annotations/1.txt", "1,2,x"), ("visdrone",), 3),
        r"1\.txt:1: '1,2,x' is not eight whole numbers",
    ),
    "overlap": (
        roboflow,
        lambda _: None,
        ("auto", "--tile", 64, "--overlap", 64),
        2,
        r"--overlap 64 is not in 0\.\.63",
    ),
    "share": (roboflow, lambda _: None, ("auto", "--val-share", 1), 2, r"--val-share 1 is not between 0 and 1"),
    "one group": (darknet, lambda _: None, ("auto", "--split-by", "seq"), 3, r"all 6 images are one group"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_leaves_nothing(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout, change, (kind, *more), code, message = BAD[name]
    layout(tmp_path / "tree")
    change(tmp_path / "tree")
    prepared(tmp_path / "tree", tmp_path / "out" / "mine", *more, kind=str(kind), code=code)
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_data_set_is_made_once_and_replaced_only_by_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    roboflow(tmp_path / "tree")
    prepared(tmp_path / "tree", tmp_path / "out")
    prepared(tmp_path / "tree", tmp_path / "out")
    assert "already holds this data set; nothing to do" in capsys.readouterr().out
    prepared(tmp_path / "tree", tmp_path / "out", "--copy", code=3)
    assert "holds a data set made with other parameters" in capsys.readouterr().err
    prepared(tmp_path / "tree", tmp_path / "out", "--copy", "--force")
    assert not (tmp_path / "out" / "train" / "train0.jpg").is_symlink()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    prepared(tmp_path / "tree", tmp_path / "mine", "--force", code=3)
    assert (tmp_path / "mine" / "thesis.tex").exists()
