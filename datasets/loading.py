"""Loader of images: retries, substitutes for unreadable images, and errors that name the image a worker failed at."""

from __future__ import annotations

import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import RawArray
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from datasets.coco import CocoDetection
from datasets.structures import DataError, SampleKey, Target

PAUSES = (0.1, 1.0)
"""Seconds before each retry: network files may be unavailable for a moment"""
MAX_SUBSTITUTES = 10
"""Images tried as a substitute for an unreadable one"""


class WorkerBoard:
    """The image that each worker of a loader is reading, in memory shared with the training process."""

    def __init__(self, workers: int) -> None:
        self._columns = RawArray("d", 3 * max(workers, 1))  # process, index or -1, since when

    def begin(self, worker: int, index: int) -> None:
        self._columns[3 * worker : 3 * worker + 3] = [os.getpid(), index, time.monotonic()]

    def end(self, worker: int) -> None:
        self._columns[3 * worker + 1] = -1

    def rows(self) -> list[tuple[int, int, float]]:
        """Process, index of the image or -1, seconds so far; of each worker that had an image."""
        values = list(self._columns)
        rows = [(int(values[i]), int(values[i + 1]), values[i + 2]) for i in range(0, len(values), 3)]
        return [(process, index, time.monotonic() - since) for process, index, since in rows if process]


class ImageReader(Dataset[tuple[Tensor, Target]]):
    """A data set that retries images that cannot be read.

    board          records the image that each worker is reading
    on_bad_image   "error": an image that is unreadable after some retries raises DataError. "skip": the next readable
                   image replaces it every time; the target's `replaces` says so

    In a loader's worker, any other error becomes a DataError that names the image.
    """

    def __init__(self, dataset: CocoDetection, *, board: WorkerBoard, on_bad_image: Literal["error", "skip"]) -> None:
        self.dataset, self.board, self.on_bad_image = dataset, board, on_bad_image

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey | int) -> tuple[Tensor, Target]:
        key = key if isinstance(key, tuple) else SampleKey(0, key)
        worker = get_worker_info()
        row = worker.id if worker is not None else 0
        self.board.begin(row, key.index)
        try:
            return self._read(key)
        except DataError as error:
            if self.on_bad_image == "error":
                raise
            return self._substitute(key, error)
        finally:
            self.board.end(row)

    def name(self, index: int) -> str:
        return f"image id {self.dataset.ground_truth(index).image_id}, {self.dataset.path(index)}"

    def _read(self, key: SampleKey) -> tuple[Tensor, Target]:
        for pause in PAUSES:
            try:
                return self._try(key)
            except DataError:
                time.sleep(pause)
        return self._try(key)

    def _try(self, key: SampleKey) -> tuple[Tensor, Target]:
        try:
            return self.dataset[key]
        except (DataError, MemoryError):
            raise
        except Exception as error:
            if get_worker_info() is None:
                error.add_note(f"while {self.name(key.index)} was loaded")
                raise
            where = traceback.extract_tb(error.__traceback__)[-1]
            raise DataError(
                f"{self.name(key.index)}: {type(error).__name__}: {error}, at {where.filename}:{where.lineno}; "
                "data.num_workers: 0 shows the whole traceback"
            ) from error

    def _substitute(self, key: SampleKey, problem: DataError) -> tuple[Tensor, Target]:
        for offset in range(1, min(MAX_SUBSTITUTES, len(self) - 1) + 1):
            try:
                image, target = self._try(key._replace(index=(key.index + offset) % len(self)))
            except DataError:
                continue
            print(f"warning: {problem}; replaced by image {target.image_id}", file=sys.stderr, flush=True)
            return image, replace(target, replaces=self.dataset.ground_truth(key.index).image_id)
        raise DataError(f"{problem}; the next {MAX_SUBSTITUTES} images are unreadable too")


class ImageLoader(DataLoader[Any]):
    """DataLoader of an ImageReader; a worker that dies or hangs raises DataError with the images it was reading.

    Workers that fail to start raise DataError too.
    """

    dataset: ImageReader

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            batches = super().__iter__()
        except OSError as error:
            raise DataError(
                f"data.num_workers: {self.num_workers} loader workers cannot be started ({error.strerror}). "
                f"{_shortage()}; ulimit -u limits processes"
            ) from error
        while True:
            with worker_failures_named(self):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            yield batch


@contextmanager
def worker_failures_named(loader: ImageLoader) -> Iterator[None]:
    """Raise DataError if a worker was killed or timed out; a death may be noticed at any moment."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if text.startswith("DataLoader timed out"):
            problem = _hanging(loader)
        elif text.startswith("DataLoader worker"):
            problem = _killed(loader, text)
        else:
            raise
        raise DataError(problem) from error


def _killed(loader: ImageLoader, text: str) -> str:
    processes = {int(number) for group in re.findall(r"pid[^\d]*([\d, ]+)", text) for number in group.split(",")}
    rows = loader.dataset.board.rows()
    images = [loader.dataset.name(index) for process, index, _ in rows if process in processes and index >= 0]
    end = text.splitlines()[0].strip().rstrip(".")
    return f"{end}. It was reading {'; '.join(images) or 'no known image'}. {_shortage()}"


def _shortage() -> str:
    free = f" (/dev/shm: {shutil.disk_usage('/dev/shm').free / 1e6:.0f} MB free)" if os.path.isdir("/dev/shm") else ""
    return (
        f"Memory or shared memory{free} may have run out: lower data.num_workers, or give the job more (docker run "
        "--shm-size)"
    )


def _hanging(loader: ImageLoader) -> str:
    rows = loader.dataset.board.rows()
    images = [f"{loader.dataset.name(index)}, for {seconds:.0f} s" for _, index, seconds in rows if index >= 0]
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the kills below are no failures
    for process, _, _ in rows:
        os.kill(process, signal.SIGKILL)  # else the exit would wait for them
    return (
        f"loading timed out after {loader.timeout:.0f} s without a batch; reading: "
        f"{'; '.join(images) or 'no known image'}. Check the storage, or set data.worker_timeout higher"
    )


def ignore_job_signals(_: int) -> None:
    """`worker_init_fn`: DataLoader workers ignore signals sent to the process group, which clusters and terminals do.

    The training process needs its workers until its step is done: SIGINT and SIGHUP are ignored, SIGTERM too unless the
    parent sent it. Workers end when their parent closes the loader or dies.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
