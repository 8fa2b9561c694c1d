"""The catalogue of bad input: how each case is made, and the arguments that meet it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import coco
from datasets.coco import CocoDetection
from engine.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from engine.commands import setup
from models.postprocess import PostProcess
from models.structures import Detections
from tests.support.image_files import write_png, write_tiff

SIZE = (40, 48)


@dataclass
class Bench:
    """A valid experiment (train: 5, 0 and 3 objects; val: 2 and 1) and a trained checkpoint, for cases to damage."""

    config: Path
    trained: Path
    patch: pytest.MonkeyPatch
    held: ExitStack = field(default_factory=ExitStack)
    """Closed by the test"""

    @property
    def folder(self) -> Path:
        return self.config.parent

    def run(self, *settings: str) -> list[str]:
        return ["--config", str(self.config), "--set", f"runtime.output_dir={self.folder / 'run'}", *settings]

    def check(self, *settings: str, full: bool = False) -> list[str]:
        return [*self.run(*settings), "--check-full" if full else "--check"]

    def image(self, number: int = 0, split: str = "train") -> Path:
        return self.folder / "data" / split / f"{number}.png"

    def annotations(self, split: str = "train") -> Path:
        return self.folder / "data" / f"{split}.json"

    def change(self, change: Callable[[dict[str, Any]], object], split: str = "train") -> None:
        document = json.loads(self.annotations(split).read_text())
        change(document)
        self.annotations(split).write_text(json.dumps(document))

    def set(self, section: str = "annotations", number: int = 1, split: str = "train", **fields: Any) -> None:
        self.change(lambda document: document[section][number].update(fields), split)

    def boxes(self, boxes: list[list[float]]) -> None:
        """All objects of the training set, on its first image."""
        common = {"image_id": 10, "category_id": 1}
        entries = [{"id": i + 1, "bbox": box, **common} for i, box in enumerate(boxes)]
        self.change(lambda document: document.update(annotations=entries))

    def write_image(self, mode: str = "RGB", number: int = 0, size: tuple[int, int] = SIZE, **options: Any) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(self.image(number), **options)

    def write_array(self, values: np.ndarray, format: str) -> None:
        Image.fromarray(values).save(self.image(), format=format)

    def with_checkpoint(self, **fields: Any) -> Path:
        """The trained checkpoint with other contents; fields of its progress too."""
        path, checkpoint = self.folder / "changed.pth", load_checkpoint(self.trained)
        counts = {name: fields.pop(name) for name in list(fields) if hasattr(checkpoint.progress, name)}
        save_checkpoint(path, replace(checkpoint, progress=replace(checkpoint.progress, **counts), **fields))
        return path


def missing_files(bench: Bench) -> list[str]:
    bench.image(0).unlink()
    bench.image(2).unlink()
    return bench.run()


def empty_file(bench: Bench) -> list[str]:
    bench.image().write_bytes(b"")
    return bench.check()


def empty_file_skipped(bench: Bench) -> list[str]:
    return [*empty_file(bench), "--set", "data.on_bad_image=skip"]


def empty_file_in_evaluation(bench: Bench) -> list[str]:
    bench.image(0, "val").write_bytes(b"")
    return bench.check("data.on_bad_image=skip")


def truncated_file(bench: Bench) -> list[str]:
    bench.write_image(format="JPEG")
    bench.image().write_bytes(bench.image().read_bytes()[:900])
    return bench.check(full=True)


def truncated_file_in_training(bench: Bench) -> list[str]:
    truncated_file(bench)
    return bench.run()


def text_file(text: str) -> Callable[[Bench], list[str]]:
    def make(bench: Bench) -> list[str]:
        bench.image().write_text(text)
        return bench.check()

    return make


def deep_png(bench: Bench) -> list[str]:
    bench.write_array((np.arange(40 * 48).reshape(SIZE) * 30).astype(np.uint16), "PNG")
    return bench.check()


def deep_colour_png(bench: Bench) -> list[str]:
    write_png(bench.image(), bits=16, colour_type=2, size=SIZE)
    return bench.check()


def tiff(**options: Any) -> Callable[[Bench], list[str]]:
    def make(bench: Bench) -> list[str]:
        write_tiff(bench.image(), size=SIZE, **options)
        return bench.check()

    return make


def float_tiff(bench: Bench) -> list[str]:
    bench.write_array(np.linspace(0, 1, 40 * 48, dtype=np.float32).reshape(SIZE), "TIFF")
    return bench.check()


def many_modes(bench: Bench) -> list[str]:
    def add(document: dict[str, Any]) -> None:
        for number, mode in enumerate(("CMYK", "P", "RGBA", "LA", "1"), start=3):
            bench.write_image(mode, number, format="TIFF" if mode == "CMYK" else "PNG")
            document["images"].append({**document["images"][0], "id": number, "file_name": f"{number}.png"})

    bench.change(add)
    return bench.check(full=True)


def rotated(stored: tuple[int, int], *settings: str, orientation: int = 6) -> Callable[[Bench], list[str]]:
    def make(bench: Bench) -> list[str]:
        exif = Image.Exif()
        exif[0x0112] = orientation
        bench.write_image(size=stored, format="JPEG", exif=exif)
        return bench.check(*settings)

    return make


def rotated_square(bench: Bench) -> list[str]:
    bench.set("images", 0, height=40, width=40)
    return rotated((40, 40))(bench)


def other_size(bench: Bench) -> list[str]:
    bench.set("images", 0, width=47)
    return bench.check()


def animation(bench: Bench) -> list[str]:
    frames = [Image.new("RGB", SIZE[::-1], colour) for colour in ("red", "blue")]
    frames[0].save(bench.image(), format="GIF", save_all=True, append_images=frames[1:])
    return bench.check()


def strange_shape(height: int, width: int) -> Callable[[Bench], list[str]]:
    def make(bench: Bench) -> list[str]:
        bench.write_image(size=(height, width), number=1)
        bench.set("images", 1, height=height, width=width)
        return bench.check()

    return make


def wrong_case(bench: Bench) -> list[str]:
    bench.set("images", 0, file_name="0.PNG")
    return bench.run()


def named(asked: str, there: str) -> Callable[[Bench], list[str]]:
    """All images of the training set are missing but one, which is there under another name."""

    def make(bench: Bench) -> list[str]:
        place = bench.image().parent / there
        place.parent.mkdir(exist_ok=True)
        bench.image().rename(place)
        bench.set("images", 0, file_name=asked)
        for number in (1, 2):
            bench.image(number).unlink()
        return bench.check()

    return make


def folder_as_image(bench: Bench) -> list[str]:
    bench.image().unlink()
    bench.image().mkdir()
    return bench.run()


def no_permission(bench: Bench) -> list[str]:
    real_open = Image.open

    def refuse(path: Any, *rest: Any, **options: Any) -> Any:  # the tests may run as root, who may read everything
        if path == bench.image():
            raise PermissionError(13, "Permission denied")
        return real_open(path, *rest, **options)

    bench.patch.setattr(Image, "open", refuse)
    return bench.check()


def vanishing_image(bench: Bench) -> list[str]:
    bench.patch.setattr(coco, "check_places", lambda *_, **__: bench.image().unlink(missing_ok=True))
    return bench.run()


def leaving_name(bench: Bench) -> list[str]:
    bench.set("images", 0, file_name="../../secret.png")
    return bench.run()


def leaving_link(bench: Bench) -> list[str]:
    shutil.move(bench.image(), bench.folder / "elsewhere.png")
    bench.image().symlink_to(bench.folder / "elsewhere.png")
    return bench.check()


def leaving_folder(bench: Bench) -> list[str]:
    outside = bench.folder / "outside"
    outside.mkdir()
    shutil.move(bench.image(), outside)
    (bench.folder / "data" / "train" / "sub").symlink_to(outside)
    bench.set("images", 0, file_name="sub/0.png")
    return bench.check()


def trusted_link(bench: Bench) -> list[str]:
    return [*leaving_link(bench), "--set", "data.follow_links=true"]


def raw(content: bytes) -> Callable[[Bench], list[str]]:
    def make(bench: Bench) -> list[str]:
        bench.annotations().write_bytes(content)
        return bench.run()

    return make


def entry(*settings: str, section: str = "annotations", number: int = 1, **fields: Any) -> Callable[[Bench], list[str]]:
    """One entry with other fields; `settings` follow a check, without any it is a training that meets it."""

    def make(bench: Bench) -> list[str]:
        bench.set(section, number, **fields)
        return bench.check(*settings) if settings else bench.run()

    return make


def changed(
    change: Callable[[dict[str, Any]], object], *settings: str, split: str = "train"
) -> Callable[..., list[str]]:
    def make(bench: Bench) -> list[str]:
        bench.change(change, split)
        return bench.check(*settings)

    return make


def boxes(found: list[list[float]], *settings: str) -> Callable[[Bench], list[str]]:
    def make(bench: Bench) -> list[str]:
        bench.boxes(found)
        return bench.check(*settings)

    return make


def sparse_categories(document: dict[str, Any]) -> None:
    for entry in document["categories"]:
        entry["id"] *= 1000
    for entry in document["annotations"]:
        entry["category_id"] *= 1000


def sparse_everywhere(bench: Bench) -> list[str]:
    bench.change(sparse_categories)
    bench.change(sparse_categories, "val")
    return ["--eval", "--resume", str(bench.trained), "--set", f"data.root={bench.folder / 'data'}"]


def without_fields(document: dict[str, Any]) -> None:
    for entry in document["annotations"]:
        for key in ("area", "iscrowd", "id"):
            del entry[key]


def text_image_ids(bench: Bench, *, images: bool = True) -> list[str]:
    def change(document: dict[str, Any]) -> None:
        for entry in document["images"] if images else []:
            entry["id"] = str(entry["id"])
        for entry in document["annotations"]:
            entry["image_id"] = str(entry["image_id"])

    bench.change(change)
    return bench.check()


def named_images(bench: Bench, *, other: str | None = None) -> list[str]:
    names = {10: "img-a", 11: "img-b", 12: "img-c"}

    def change(document: dict[str, Any]) -> None:
        for entry in document["images"]:
            entry["id"] = names[entry["id"]]
        for entry in document["annotations"]:
            entry["image_id"] = other or names[entry["image_id"]]

    bench.change(change)
    return bench.check()


def corner_boxes(*, thin: int) -> list[list[float]]:
    """36 small objects anywhere in an image, some of them without width."""
    draw = np.random.default_rng(0)
    low = draw.integers(0, 30, (36, 2))
    high = low + draw.integers(4, 10, (36, 2))
    high[:thin, 0] = low[:thin, 0] = 20
    return np.concatenate([low, high], axis=1).tolist()


def zero_areas(document: dict[str, Any]) -> None:
    for entry in document["annotations"]:
        entry["area"] = 0


def all_but_one_crowd(document: dict[str, Any]) -> None:
    for entry in document["annotations"][1:]:
        entry["iscrowd"] = 1


def parents(bench: Bench) -> list[str]:
    """A root of all categories, as Roboflow writes it."""
    for split in ("train", "val"):
        bench.change(lambda d: d["categories"].insert(0, {"id": 0, "name": "root", "supercategory": "none"}), split)
        bench.change(lambda d: d["categories"][1].update(supercategory="root"), split)
    return bench.check()


def name_twice(bench: Bench) -> list[str]:
    bench.change(lambda document: document["categories"][1].update(name="square"))
    return bench.check()


def shared_images(bench: Bench) -> list[str]:
    return bench.check("data.val.annotations=train.json", "data.val.images=train")


def same_image_twice(bench: Bench) -> list[str]:
    bench.set("images", 2, file_name="./0.png")
    return bench.check()


def linked_image(bench: Bench) -> list[str]:
    bench.image(2).unlink()
    bench.image(2).symlink_to("0.png")
    return bench.run()


def copied_image(bench: Bench) -> list[str]:
    shutil.copy(bench.image(0), bench.image(2))
    return bench.check(full=True)


def copied_into_evaluation(bench: Bench) -> list[str]:
    shutil.copy(bench.image(0), bench.image(1, "val"))
    return bench.check(full=True)


def linked_into_evaluation(bench: Bench) -> list[str]:
    bench.image(1, "val").unlink()
    os.link(bench.image(0), bench.image(1, "val"))
    return bench.check()


def odd_names(bench: Bench, *, there: bool = True) -> list[str]:
    name = "å\n你\u202e好.png"
    if there:
        bench.image().rename(bench.image().with_name(name))
    bench.set("images", 0, file_name=name)
    bench.set(number=0, id=10**30)
    bench.change(lambda document: document["categories"][0].update(name="a\nb \ud800"))
    bench.change(lambda document: document["categories"][0].update(name="a\nb \ud800"), "val")
    for number in range(5):
        bench.set(number=number, image_id=2**62)
    bench.set("images", 0, id=2**62)
    return bench.check(full=True)


def text(change: Callable[[str], str], *, name: str = "tiny.yaml") -> Callable[[Bench], list[str]]:
    """The config file, changed."""

    def make(bench: Bench) -> list[str]:
        path = bench.folder / name
        path.write_text(change(bench.config.read_text()))
        return ["--config", str(path)]

    return make


def arguments(*given: str) -> Callable[[Bench], list[str]]:
    """Command line with the names of files filled in."""

    def make(bench: Bench) -> list[str]:
        return [word.format(config=bench.config, trained=bench.trained, folder=bench.folder) for word in given]

    return make


def circular(bench: Bench) -> list[str]:
    for one, other in (("a", "b"), ("b", "a")):
        (bench.folder / f"{one}.yaml").write_text(f"include: [{other}.yaml]\n")
    return ["--config", str(bench.folder / "a.yaml")]


def bytes_of_checkpoint(change: Callable[[bytes], bytes]) -> Callable[[Bench], list[str]]:
    def make(bench: Bench) -> list[str]:
        path = bench.folder / "bad.pth"
        path.write_bytes(change(bench.trained.read_bytes()))
        return ["--resume", str(path)]

    return make


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


class RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo executed > executed.txt",)


def hostile_pickle(bench: Bench) -> list[str]:
    torch.save({"format": 2, "model": RunsCode()}, bench.folder / "hostile.pth")
    return ["--resume", str(bench.folder / "hostile.pth")]


def third_class(bench: Bench) -> None:
    for split in ("train", "val"):
        bench.change(lambda document: document["categories"].append({"id": 3, "name": "third"}), split)


def other_classes(*settings: str) -> Callable[[Bench], list[str]]:
    def make(bench: Bench) -> list[str]:
        third_class(bench)
        return bench.check("model.num_classes=3", f"init_from={bench.trained}", *settings)

    return make


def other_world(bench: Bench, **place: int) -> list[str]:
    states = load_checkpoint(bench.trained).random_states
    path = bench.with_checkpoint(random_states=states * 2, epoch=0, **place)
    return ["--resume", str(path), "--set", f"runtime.output_dir={bench.folder / 'run'}"]


def other_training_data(bench: Bench, *options: str) -> list[str]:
    path = bench.with_checkpoint(epoch=0)
    bench.set(area=5)
    return [*bench.run("optim.epochs=1"), "--resume", str(path), *options]


def other_data(bench: Bench) -> list[str]:
    bench.change(lambda document: document["categories"][0].update(name="renamed"), "val")
    return ["--eval", "--resume", str(bench.trained), "--set", f"data.root={bench.folder / 'data'}"]


def finished(bench: Bench) -> list[str]:
    return ["--resume", str(bench.with_checkpoint()), "--set", f"runtime.output_dir={bench.folder / 'run'}"]


def other_optimizer(bench: Bench) -> list[str]:
    state = load_checkpoint(bench.trained).optimizer
    path = bench.with_checkpoint(optimizer={**state, "param_groups": state["param_groups"][:1]}, epoch=0)
    return ["--resume", str(path), "--check"]


def full_disk(bench: Bench) -> list[str]:
    usage = shutil.disk_usage(bench.folder)
    bench.patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    return bench.run()


def full_disk_check(bench: Bench) -> list[str]:
    full_disk(bench)
    return bench.check()


def no_folder(bench: Bench) -> list[str]:
    (bench.folder / "run").write_text("a file")
    return bench.check()


HOLD = """
import fcntl, sys, time
file = open(sys.argv[1], "a+")
fcntl.lockf(file, fcntl.LOCK_EX)
print("holding", flush=True)
time.sleep(60)
"""


def held_folder(bench: Bench) -> list[str]:
    (bench.folder / "run").mkdir()
    command = [sys.executable, "-c", HOLD, str(bench.folder / "run" / "run.lock")]
    holder = bench.held.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    bench.held.callback(holder.kill)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "holding\n"
    return bench.run()


def held_port(bench: Bench) -> list[str]:
    server = bench.held.enter_context(socket.create_server(("localhost", 0)))
    group = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost"}
    for name, value in {**group, "MASTER_PORT": server.getsockname()[1]}.items():
        bench.patch.setenv(name, str(value))
    return bench.run()


def other_config(bench: Bench) -> list[str]:
    dump = setup.dump_config
    bench.patch.setattr(setup, "dump_config", lambda config: dump(config) + os.environ["RANK"])
    return bench.run()


def kill_worker(bench: Bench, image: int) -> None:
    """At this image."""
    read = CocoDetection.__getitem__

    def killed(dataset: CocoDetection, key: Any) -> Any:
        if torch.utils.data.get_worker_info() is not None and key.index == image:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        return read(dataset, key)

    bench.patch.setattr(CocoDetection, "__getitem__", killed)


def killed_worker(bench: Bench) -> list[str]:
    kill_worker(bench, 1)
    return bench.run("data.num_workers=1", "data.flip_prob=0")


def killed_worker_in_evaluation(bench: Bench) -> list[str]:
    """Noticed while the image before it is worked on."""
    kill_worker(bench, 1)
    bench.patch.setattr(PostProcess, "__call__", lambda *_: time.sleep(30))
    settings = ["data.num_workers=1", "data.batch_size=1", f"data.root={bench.folder / 'data'}"]
    return ["--eval", "--resume", str(bench.trained), "--set", *settings]


def no_detections(bench: Bench) -> list[str]:
    def nothing(self: Any, output: Any, sizes: Any, original_sizes: Any) -> list[Detections]:
        return [Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)) for _ in sizes]

    bench.patch.setattr(PostProcess, "__call__", nothing)
    return ["--eval", "--resume", str(bench.trained), "--set", f"data.root={bench.folder / 'data'}"]
