"""Images that cannot be read at once or at all, and workers that fail, die or hang."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets import loading
from datasets.coco import CocoDetection
from datasets.collate import collate
from datasets.loading import ImageLoader, ImageReader, WorkerBoard, worker_failures_named
from datasets.structures import DataError, SampleKey
from datasets.transforms import Normalize, Sample

Open = Callable[..., CocoDetection]


@pytest.fixture(autouse=True)
def _without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "PAUSES", (0.0, 0.0))


def reader(dataset: CocoDetection, policy: Any = "error", workers: int = 0) -> ImageReader:
    return ImageReader(dataset, board=WorkerBoard(workers), on_bad_image=policy)


def test_an_image_that_comes_back_is_read(
    open_dataset: Open, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = open_dataset(document)
    expected, _ = dataset[SampleKey(3, 0)]
    read, calls = dataset.read_image, []

    def read_image(index: int) -> Any:
        calls.append(index)
        if len(calls) < 3:
            raise DataError("stale file handle")
        return read(index)

    monkeypatch.setattr(dataset, "read_image", read_image)
    image, target = reader(dataset)[SampleKey(3, 0)]
    assert torch.equal(image, expected)
    assert (target.replaces, len(calls)) == (None, 3)


def test_one_that_is_gone_stops_the_run_or_is_replaced(
    open_dataset: Open, document: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = open_dataset(document)
    (tmp_path / "images" / "c.png").unlink()
    with pytest.raises(DataError, match=r"c\.png"):
        reader(dataset)[SampleKey(1, 2)]
    patient = reader(dataset, "skip")
    expected, _ = dataset[SampleKey(1, 0)]  # the next one, around the end
    for _ in range(2):
        image, target = patient[SampleKey(1, 2)]
        assert torch.equal(image, expected)
        assert (target.image_id, target.replaces) == (7, 12)
    assert "c.png" in capsys.readouterr().err
    for path in (tmp_path / "images").rglob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="images are unreadable too"):
        patient[SampleKey(1, 2)]


class Spoiled:
    """A last transform that does something to image 3 in a worker."""

    def __init__(self, harm: Callable[[], object]) -> None:
        self.harm = harm
        self.normalize = Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if len(sample.boxes) == 1:  # image 3
            self.harm()
        return self.normalize(sample, rng)


def load_all(dataset: CocoDetection, message: Path) -> None:
    options: dict[str, Any] = {"num_workers": 2, "timeout": 2, "multiprocessing_context": "fork"}
    loader = ImageLoader(reader(dataset, workers=2), batch_size=1, collate_fn=collate, **options)
    try:
        with worker_failures_named(loader):
            for _ in loader:
                time.sleep(0.2)  # a death may be noticed here as well
    except DataError as error:
        message.write_text(error.summary())


@pytest.mark.parametrize(
    ("harm", "parts"),
    [
        (lambda: [][1], ["IndexError", "test_loading.py:"]),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), ["data.num_workers", "MB free"]),
        (lambda: time.sleep(1000), ["timed out after 2 s", "data.worker_timeout"]),
    ],
    ids=["raises", "is killed", "hangs"],
)
def test_a_failing_worker_names_its_image(
    open_dataset: Open, document: dict[str, Any], tmp_path: Path, harm: Callable[[], object], parts: list[str]
) -> None:
    dataset = open_dataset(document, transforms=Spoiled(harm))
    message = tmp_path / "message.txt"
    process = multiprocessing.get_context("fork").Process(target=load_all, args=(dataset, message))
    process.start()  # on its own, as torch has a handler for dead workers that stays
    process.join(60)
    assert process.exitcode == 0
    for part in [f"image id 3, {tmp_path / 'images' / 'sub' / 'b.png'}", *parts]:
        assert part in message.read_text()


@pytest.mark.parametrize("number", [28, 11, 12])
def test_workers_that_cannot_be_started_are_no_error_of_another_file(
    open_dataset: Open, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A full /dev/shm has no room for a semaphore, a job no process more."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    loader = ImageLoader(reader(open_dataset(document)), batch_size=1, collate_fn=collate, num_workers=1)
    monkeypatch.setattr(ImageLoader, "_get_iterator", fail)
    with pytest.raises(DataError, match=rf"1 loader workers cannot be started \({os.strerror(number)}\).*shm-size"):
        next(iter(loader))


def test_the_text_of_torch_when_several_died() -> None:
    class Rows:
        rows = staticmethod(lambda: [(11, 0, 1.0), (12, -1, 1.0), (13, 2, 1.0)])

    class Loader:
        class dataset:
            board = Rows
            name = staticmethod(lambda index: f"image {index}")

    with pytest.raises(DataError, match="It was reading image 0; image 2"), worker_failures_named(Loader):  # type: ignore[arg-type]
        raise RuntimeError("DataLoader worker (pid(s) 11, 13) exited unexpectedly")
    with pytest.raises(RuntimeError, match="other"), worker_failures_named(Loader):  # type: ignore[arg-type]
        raise RuntimeError("other")
