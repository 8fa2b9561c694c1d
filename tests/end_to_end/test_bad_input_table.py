"""The rows of docs/reliability.md: each ends with its exit code and message, and never with a traceback."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import main
import tests.end_to_end.bad_input_cases as made
from tests.chaos.launch import Run
from tests.end_to_end.bad_input_cases import SIZE, Bench, arguments, boxes, changed, entry, raw, text
from tests.support.tiny_run import write_experiment

SKIP = "data.on_bad_annotation=skip"
CORNERS = [[20 + k, 15 + k, 44, 36] for k in range(6)]
NORMAL = [[0.1, 0.2, 0.3, 0.1 + k / 100] for k in range(5)]
LEAVING = [[44, 2 + 7 * k, 9, 5] for k in range(5)] + [[30 - 3 * k, 20, 5, 6] for k in range(8)]
DENSE = [[k % 8 * 5, k // 8 * 6, 4, 4] for k in range(40)]


@dataclass(frozen=True)
class Case:
    row: int
    name: str
    make: Callable[[Bench], list[str]]
    code: int
    pattern: str
    processes: int = 0
    """That run it; 0: the process of the test"""


TABLE = [
    Case(
        1,
        "missing images",
        made.missing_files,
        3,
        r"0\.png: no such.*\n.*2\.png.*\n2 errors.*data\.root",
    ),
    Case(2, "empty image", made.empty_file, 3, "is empty .0 bytes.; fetch"),
    Case(2, "empty image, skip", made.empty_file_skipped, 0, r"skipped: 1\n  empty_image: 1"),
    Case(2, "empty image in evaluation", made.empty_file_in_evaluation, 3, "empty_image: 1"),
    Case(3, "truncated image", made.truncated_file, 3, "broken_image: 1.*\n.*cannot decode.*fetch the file again"),
    Case(3, "truncated image, training", made.truncated_file_in_training, 3, "cannot decode.*fetch the file again"),
    Case(4, "web page", made.text_file("<!doctype html>"), 3, "web page or XML, not an image; fetch"),
    Case(4, "LFS pointer", made.text_file("version https://git-lfs.github.com/spec/v1\n"), 3, "git lfs pull"),
    Case(5, "16-bit PNG", made.deep_png, 3, "PNG that holds more than 8 bits.*convert it to 8-bit"),
    Case(5, "16-bit colour PNG", made.deep_colour_png, 3, "deep_image: 1\n.*a PNG that holds more than 8 bits"),
    Case(5, "12-bit TIFF", made.tiff(bands=3, bits=12), 3, "deep_image: 1\n.*8 bits per channel .12-bit unsigned"),
    Case(6, "float TIFF", made.float_tiff, 3, "a TIFF that holds more than 8 bits per channel .32-bit float"),
    Case(7, "CMYK, palette, alpha, 1 bit", made.many_modes, 0, r"fixed in memory: 5\n  image_mode: 5\n.*mode CMYK"),
    Case(8, "EXIF rotation, as annotated", made.rotated((48, 40)), 0, "image_rotation: 1"),
    Case(8, "EXIF rotation, not annotated", made.rotated((40, 48)), 0, r"training images: ok"),
    Case(
        8, "EXIF rotation of a square", made.rotated_square, 0, "exif_ambiguous: 1\n.*1 image with a .*orientation 6: 1"
    ),
    Case(8, "upside down", made.rotated(SIZE, orientation=3), 0, "exif_ambiguous: 1\n.*view some, then set data.exif"),
    Case(8, "upside down, applied", made.rotated(SIZE, "data.exif=apply", orientation=3), 0, "image_rotation: 1\n"),
    Case(8, "mirrored, ignored", made.rotated(SIZE, "data.exif=ignore", orientation=2), 0, "training images: ok"),
    Case(8, "rotated, applied", made.rotated(SIZE, "data.exif=apply"), 3, "as stored, with EXIF orientation 6"),
    Case(9, "another size", made.other_size, 3, "is 48 x 40 px, but .*images.0.* says width 47"),
    Case(10, "animation", made.animation, 0, "warnings: 1\n  animation: 1\n.*only the first frame"),
    Case(11, "decompression bomb", lambda b: b.check("data.max_image_pixels=1900"), 3, "max_image_pixels 1900; cut"),
    Case(12, "extreme aspect", made.strange_shape(2, 300), 3, "300 x 2 px has a side below 1 px.*tiles"),
    Case(12, "1 x 1", made.strange_shape(1, 1), 0, "ready"),
    Case(13, "case", made.wrong_case, 3, "0.png exists: names are case-sensitive"),
    Case(
        13,
        "backslash",
        made.named("sub\\0.png", "sub/0.png"),
        3,
        r"missing_image: 3\n.*; sub/0\.png exists: folders are",
    ),
    Case(
        13,
        "Unicode form",
        made.named("\xfc.png", "u\u0308.png"),
        3,
        r"\.png exists: .*Unicode form, 'u\\u0308\.png' th",
    ),
    Case(13, "extension", made.named("0.jpg", "0.png"), 3, "0.png exists: with another extension"),
    Case(
        13, "annotation file", lambda b: b.check("data.train.annotations=Train"), 3, "train.json exists: names are case"
    ),
    Case(
        13,
        "images folder",
        lambda b: b.check("data.val.images=data/val"),
        3,
        "/data/val exists: in another folder; make",
    ),
    Case(
        13,
        "data root",
        lambda b: b.check(f"data.root={b.folder}/Data"),
        3,
        "/data exists: names are case-sensitive; make",
    ),
    Case(14, "folder", made.folder_as_image, 3, "0.png: is a folder; check file_name"),
    Case(14, "unreadable", made.no_permission, 3, "no permission to read it; change its permissions"),
    Case(15, "vanishing image", made.vanishing_image, 3, "0.png: no such image"),
    Case(16, "no JSON", raw(b'{"images": [],\n "annotations": [1,]'), 3, "invalid JSON at line 2, column"),
    Case(16, "no UTF-8", raw(b'{"images": ["\xff\xfe"]'), 3, "train.json: cannot be read as JSON"),
    Case(16, "a deep nest", raw(b"[" * 100_000), 3, "cannot be read as JSON"),
    Case(16, "a number of 10,000 digits", raw(b'{"images": [' + b"1" * 10_000 + b"]}"), 3, "cannot be read as JSON"),
    Case(17, "a list", raw(b"[1]"), 3, "not a COCO detection file.*found a list"),
    Case(17, "other keys", raw(b'{"shapes": []}'), 3, r"no list 'images', found \['shapes'\]"),
    Case(18, "image id twice", entry(section="images", id=10), 3, r"images\[1\] \(id 10\).*unique"),
    Case(19, "annotation id twice", entry(id=1), 3, r"annotations\[1\] \(id 1\): is also the id of annotations\[0\]"),
    Case(19, "annotation id twice, skip", entry(SKIP, id=1), 0, "repeated_id: 1"),
    Case(20, "annotation id 0", entry("data.flip_prob=0", id=0), 0, "fixed in memory: 1\n  id_zero: 1"),
    Case(21, "unknown image", entry(image_id=99), 3, r"annotations\[1\] \(id 2\): image_id 99 is no id in images"),
    Case(21, "unknown image, skip", entry(SKIP, image_id=99), 0, "skipped: 1\n  unknown_image: 1"),
    Case(22, "unknown category", entry(category_id=7), 3, r"category_id 7 is none of \[1, 2\]; add"),
    Case(22, "unknown category, skip", entry(SKIP, category_id=7), 0, "skipped: 1\n  unknown_category: 1"),
    Case(23, "category id as text", entry("data.flip_prob=0", category_id="1"), 0, "category_id: 1\n.*'1' read as"),
    Case(23, "image ids as text", made.text_image_ids, 0, r"image_id: 11\n.*images\[0\] .*'10'.*read as 10 .3 such"),
    Case(23, "image ids as text in annotations", lambda b: made.text_image_ids(b, images=False), 0, "image_id: 8\n"),
    Case(23, "image names as ids", made.named_images, 0, r"image_name: 3\n.*'img-a'\): read as 0(.|\n)*ready"),
    Case(23, "another image's name", lambda b: made.named_images(b, other="img-x"), 3, "'img-x' is no id in images"),
    Case(23, "sizes as text", entry(SKIP, section="images", number=0, width="48"), 0, "image_size: 1\n.*width '48'"),
    Case(23, "area as text", entry("data.flip_prob=0", area="36"), 0, "area: 1\n.*area '36' read as 36"),
    Case(23, "category name as id", entry(category_id="square"), 3, "category_id 'square' is none of"),
    Case(24, "NaN", entry(bbox=[1, 2, float("nan"), 4]), 3, r"bbox \[1, 2, nan, 4\] holds NaN"),
    Case(24, "infinite, skip", entry(SKIP, bbox=[1, 2, float("inf"), 4]), 0, "skipped: 1\n  not_finite: 1"),
    Case(25, "negative size", entry(bbox=[9, 9, -3, 4]), 3, "negative width or height .*not two corners"),
    Case(25, "corners", boxes(CORNERS), 3, "6 of 6 boxes leave their image.*x1, y1, x2, y2 written as"),
    Case(25, "corners, one thin", boxes(made.corner_boxes(thin=1)), 3, "x1, y1, x2, y2 written as"),
    Case(26, "zero area", entry(bbox=[9, 9, 0, 4]), 3, "zero area; fix it.*data.on_bad_annotation: skip"),
    Case(26, "zero area, skip", entry(SKIP, bbox=[9, 9, 0, 4]), 0, "skipped: 1\n  zero_area: 1"),
    Case(27, "partly outside", entry("data.flip_prob=0", bbox=[40, 30, 20, 20]), 0, "fixed: {'clipped_box': 1}"),
    Case(27, "many beyond their image", boxes(LEAVING), 0, "boxes_leave_image: 5\n.*5 of 13 boxes leave their image"),
    Case(28, "outside", entry("data.flip_prob=0", bbox=[60, 60, 5, 5]), 0, "dropped: {'outside_image': 1}"),
    Case(29, "text as numbers", entry(bbox=["1", 2, 3, 4]), 3, "holds a value that is no number"),
    Case(30, "three numbers", entry(bbox=[1, 2, 3]), 3, r"bbox \[1, 2, 3\] is not \[x, y, width, height\]"),
    Case(31, "no area, iscrowd, id", changed(made.without_fields), 0, "no_id: 8(.|\n)*no_area: 8(.|\n)*no_iscrowd: 8"),
    Case(31, "area 0", changed(made.zero_areas), 0, r"area_zero: 8\n.*8 objects have area 0 beside a sound box"),
    Case(
        31, "area far from the box", entry("data.flip_prob=0", area=9999), 0, "area_far_from_box: 1\n.*9999 px.2 beside"
    ),
    Case(32, "crowd", entry("data.flip_prob=0", iscrowd=1), 0, "dropped: {'crowd': 1}"),
    Case(32, "ignore as text", entry("data.flip_prob=0", ignore="False"), 0, "ignore: 1\n.*ignore 'False' read as 0"),
    Case(32, "ignore is 2", entry(ignore=2), 3, "ignore 2 is neither 0 nor 1; write one of them .bad_ignore"),
    Case(32, "ignore is 2, skip", entry(SKIP, ignore=2), 0, "skipped: 1\n  bad_ignore: 1"),
    Case(32, "most are dropped", changed(made.all_but_one_crowd), 0, "many_dropped: 7\n.*7 of 8 objects .*crowd 7"),
    Case(33, "normalised boxes", boxes(NORMAL), 3, "no bbox value is above 1.*normalised boxes. Multiply"),
    Case(33, "normalised, one overshoots", boxes([*NORMAL, [0.2, 0.2, 2, 1.02]]), 3, "in 5 of 6 boxes .the first"),
    Case(34, "repeated object", boxes([[5, 5, 6, 6]] * 3), 0, "repeated_object: 2\n.*2 objects repeat another"),
    Case(35, "sparse category ids", made.sparse_everywhere, 0, "square"),
    Case(36, "other categories", changed(made.sparse_categories, split="val"), 0, "ready"),
    Case(
        36,
        "other names",
        changed(lambda d: d["categories"][1].update(name="disc"), split="val"),
        3,
        "label 1 is 'disc' there and 'other' in training",
    ),
    Case(36, "a mere parent", made.parents, 0, "parent_category: 2\n.*'root' has no objects(.|\n)*ready"),
    Case(36, "a name twice", made.name_twice, 3, "errors: 1\n  bad_categories: 1\n.*'square' appears twice, for id 1"),
    Case(
        36, "no objects of a class", boxes([[5, 5, 6, 6]]), 0, "empty_category: 1\n.*1 of 2 categories .* from: other"
    ),
    Case(37, "shared images", made.shared_images, 0, "same_file: 3\n.*3 of its 3 images are trained on too"),
    Case(37, "a link into the other split", made.linked_into_evaluation, 0, "same_file: 1\n.*1 of its 2 images are tr"),
    Case(37, "a copy in the other split", made.copied_into_evaluation, 0, "same_file: 1\n.*val/1.png .*train/0.png"),
    Case(38, "no images", changed(lambda d: d.update(images=[], annotations=[])), 3, "images is empty"),
    Case(39, "image without objects", lambda b: b.check(), 0, "per image: min 0(.|\n)*ready"),
    Case(40, "no objects", changed(lambda d: d.update(annotations=[])), 3, "no usable object in 3 images"),
    Case(41, "more objects than queries", boxes(DENSE), 0, "1 of 3 images have more objects than the 30 .* most 40"),
    Case(42, "num_classes", lambda b: b.run("model.num_classes=5"), 3, "2 categories.*num_classes is 5; set"),
    Case(42, "num_classes one off", lambda b: b.run("model.num_classes=3"), 3, "the background is no class here"),
    Case(43, "odd names and ids", made.odd_names, 0, r"a\\nb \\ud800(.|\n)*ready"),
    Case(43, "odd name, missing", lambda b: made.odd_names(b, there=False), 3, r"/å\\n你\\u202e好\.png: no such"),
    Case(44, "unknown key", lambda b: b.run("optim.lrr=1"), 2, "unknown key 'lrr'; did you mean 'lr'"),
    Case(45, "wrong type", text(lambda t: t.replace("lr: 1e-3", "lr: high")), 2, r"yaml:\d+: optim.lr: expected a n"),
    Case(45, "out of range", text(lambda t: t.replace("lr: 1e-3", "lr: -1")), 2, "optim.lr: must be > 0, got -1"),
    Case(45, "key twice", text(lambda t: t + "optim: {lr: 1}\n"), 2, "duplicate key 'optim'; see"),
    Case(45, "a million bytes", text(lambda t: t + "#" * 1_000_001), 2, "larger than 1000000 bytes"),
    Case(45, "an alias bomb", text(lambda t: t + "a: &a [x]\nb: &b [*a, *a]\n"), 2, "anchors and aliases are not"),
    Case(45, "a tag", text(lambda t: t + "a: !!python/object/apply:os.system [true]\n"), 2, "tags are not allowed"),
    Case(45, "a deep nest", text(lambda t: t + "a: " + "[" * 5000), 2, "nested deeper than"),
    Case(45, "too many values", text(lambda t: t + f"a: [{'1,' * 100_000}]\n"), 2, "more than 10000 keys and values"),
    Case(
        45, "override cut by #", lambda b: b.run("optim.epochs=3 #x"), 2, "--set optim.epochs: .* # would start a comm"
    ),
    Case(45, "text with #", lambda b: b.run("data.root=a #b"), 3, "a #b: no such data root"),
    Case(45, "block cut by #", lambda b: b.check("data.val={images: a #b}"), 2, "--set data.val: .* # would start a"),
    Case(
        46,
        "unset variable",
        lambda b: b.check("data.root=$NOT_SET/x"),
        2,
        r"tiny.yaml: data.root: .*NOT_SET is not set; ex",
    ),
    Case(
        46,
        "no such user",
        lambda b: b.run("init_from=~nobody-here/x"),
        2,
        r"tiny.yaml: init_from: .*no home folder of ~n",
    ),
    Case(46, "no config", arguments("--config", "{folder}/tyni.yaml"), 2, "no such file; did you mean 'tiny.yaml'"),
    Case(46, "circular include", made.circular, 2, "a fragment cannot include"),
    Case(47, "--eval alone", arguments("--config", "{config}", "--eval"), 2, "--eval needs --resume"),
    Case(47, "nothing", arguments(), 2, "give --config FILE"),
    Case(47, "eval and check", arguments("--eval", "--resume", "{trained}", "--check"), 2, "eval and --check exclude"),
    Case(47, "two checks", arguments("--config", "{config}", "--check", "--check-full"), 2, "exclude each other"),
    Case(48, "learning rate", lambda b: b.run("optim.epochs=1", "optim.processes=2"), 0, "was chosen for 2 processes"),
    Case(49, "no checkpoint", arguments("--resume", "{folder}/none.pth"), 4, "none.pth: no such checkpoint"),
    Case(49, "truncated", made.bytes_of_checkpoint(lambda b: b[:-100]), 4, "bad.pth: .*take an earlier one"),
    Case(49, "one bit flipped", made.bytes_of_checkpoint(made.flip), 4, "bad.pth: damaged .*take an earlier one"),
    Case(49, "pickle with code", made.hostile_pickle, 4, "hostile.pth: not readable as a checkpoint"),
    Case(
        50,
        "other architecture",
        arguments("--resume", "{trained}", "--check", "--set", "model.hidden_dim=32"),
        4,
        "another architecture: 0 tensors missing, 0 unexpected, .* of another shape; first",
    ),
    Case(51, "other classes", made.other_classes(), 4, "of another shape.*reset_head: true"),
    Case(51, "other classes, reset", made.other_classes("reset_head=true"), 0, "initial values kept in .* tensors"),
    Case(
        51,
        "longer query table",
        lambda b: b.check(f"init_from={b.trained}", "model.num_queries=40"),
        0,
        "last.pth; content_queries.weight: all 30 trained rows, 10 more at initial values",
    ),
    Case(52, "other number of processes", made.other_world, 0, "warning: the checkpoint is of 2 processes, this run"),
    Case(
        52,
        "other number of processes, inside an epoch",
        lambda b: made.other_world(b, batch=1, batches=2),
        4,
        "of 2 processes, this run has 1: start as many until the epoch ends",
    ),
    Case(
        53,
        "other training data",
        made.other_training_data,
        4,
        "other training data than .*resume with --allow-config-change",
    ),
    Case(53, "other data, allowed", lambda b: made.other_training_data(b, "--allow-config-change"), 0, "done"),
    Case(
        53,
        "other config",
        lambda b: [*b.run("optim.epochs=1", "optim.lr=2e-3"), "--resume", str(b.with_checkpoint(epoch=0))],
        2,
        "optim.lr: 0.001 in the checkpoint, 0.002 now",
    ),
    Case(53, "other classes in evaluation", made.other_data, 3, "are not those that .* was trained on"),
    Case(54, "finished", made.finished, 0, "already finished: 1 of 1 epoch;"),
    Case(55, "other optimiser", made.other_optimizer, 4, "optimiser does not fit: "),
    Case(56, "disk full", made.full_disk, 2, "need .* but 0 MB are free; free some space"),
    Case(56, "disk full, check", made.full_disk_check, 2, "need .* but 0 MB are free; free some space"),
    Case(56, "no folder", made.no_folder, 2, "run: not writable"),
    Case(57, "held folder", made.held_folder, 2, "run is in use by another run; wait until it ends"),
    Case(58, "port in use", made.held_port, 2, r"cannot bind port \d+ .*address already in use"),
    Case(58, "processes with other configs", made.other_config, 2, "process 1 on .*: another config than process 0", 2),
    Case(
        59,
        "killed worker",
        made.killed_worker,
        3,
        r"DataLoader worker .*\. It was reading image id 11, .*1\.png\. .*shm-size",
    ),
    Case(
        59,
        "the same in evaluation",
        made.killed_worker_in_evaluation,
        3,
        r"DataLoader worker .*\. It was reading image id 11, ",
    ),
    Case(60, "no detections", made.no_detections, 0, r"average precision, %\s+0\.0"),
    # Beyond the rows.
    Case(
        0,
        "one image twice",
        made.same_image_twice,
        3,
        r"same_file: 1\n.*0\.png \(.*images\[0\] \(id 10\)\) and .*0\.png \(.*images\[2\] \(id 12\)\) are one",
    ),
    Case(
        0,
        "a link to another image",
        made.linked_image,
        3,
        r"0\.png .* and .*2\.png .* are one image file; make .*same_file",
    ),
    Case(
        0,
        "a copy of another image",
        made.copied_image,
        3,
        r"same_file: 1\n.*0\.png .* and .*2\.png .* have the same pix",
    ),
    Case(0, "eight bands", made.tiff(bands=8), 3, "band_count: 1\n.*a TIFF of 8 bands; write three of them as"),
    Case(0, "file_name leads out", made.leaving_name, 3, "file_name '../../secret.png' leads out of the images folder"),
    Case(0, "link leads out", made.leaving_link, 3, "0.png: a link to .*elsewhere.png, outside(.|\\n)*follow_links"),
    Case(0, "link of a folder leads out", made.leaving_folder, 3, "a link to .*outside/0.png, outside"),
    Case(0, "link that is trusted", made.trusted_link, 0, "ready"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run of one epoch."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_experiment(folder, train=[5, 0, 3], val=[2, 1])
    settings = ["--set", "optim.epochs=1", f"runtime.output_dir={folder / 'run'}"]
    assert main.main(["--config", str(config), *settings]) == 0
    return folder / "run" / "last.pth"


@pytest.mark.parametrize("case", TABLE, ids=lambda case: f"{case.row}-{case.name}")
def test_row(
    case: Case,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bench = Bench(write_experiment(tmp_path, train=[5, 0, 3], val=[2, 1]), trained, monkeypatch)
    monkeypatch.chdir(tmp_path)
    with bench.held:
        given = case.make(bench)
        capsys.readouterr()
        if case.processes:
            log = tmp_path / "log.txt"
            codes = set(Run(given, log=log, ranks=case.processes, hook=print_to_files).wait())
            printed = log.read_text()
        else:
            codes = {main.main(given)}
            printed = "".join(capsys.readouterr())
    assert codes == {case.code}, printed
    assert re.search(case.pattern, printed), printed
    assert "Traceback" not in printed
    assert not Path("executed.txt").exists()
    if "--check" in given and (tmp_path / "run").is_dir():
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["check.jsonl"]


def print_to_files() -> None:
    """As a process does that was not forked from a test."""
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__


def test_every_row_has_a_case() -> None:
    assert {case.row for case in TABLE} - {0} == set(range(1, 61))
