"""Logs of a run: log.txt, metrics.jsonl, metrics.csv and TensorBoard events, written by rank 0."""

import csv
import io
import json
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO, TypeVar

import numpy as np
from PIL import Image
from tqdm import tqdm

from engine.wording import counted

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Item = TypeVar("Item")


class RunLogger:
    """Writer of `log.txt`, `metrics.jsonl` and `tensorboard/` in the run folder; appends to existing files.

    `metrics.csv` is made of `metrics.jsonl`, after each evaluation and at the end.

    folder    the run folder; created if missing
    is_main   False: every method does nothing, and no file or folder is created

    The step of every kind of record is the number of optimiser steps so far: `rewind` relies on it.
    """

    def __init__(self, folder: Path, *, is_main: bool) -> None:
        self._log_file = folder / "log.txt"
        self._metrics_file = folder / "metrics.jsonl"
        self._events_folder = folder / "tensorboard"
        self._is_main = is_main
        self._start = time.monotonic()
        self._log: TextIO | None = None
        self._metrics: TextIO | None = None
        self._events: SummaryWriter | None = None
        self._purge_step: int | None = None
        if is_main:
            folder.mkdir(parents=True, exist_ok=True)
            self._log = self._log_file.open("a", encoding="utf-8", errors="backslashreplace")

    def say(self, text: str) -> None:
        """Print a line, prefixed by the time since the start, on stdout and in `log.txt`; further lines as they are."""
        if self._log is None:
            return
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        line = f"[{minutes // 60}:{minutes % 60:02}:{seconds:02}] {text}"
        tqdm.write(line, file=sys.stdout)  # a progress bar on the terminal stays whole
        sys.stdout.flush()
        with naming(self._log_file):
            print(line, file=self._log, flush=True)

    def record(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Write one line of `metrics.jsonl`, {"kind", "step", **values}, and the TensorBoard scalars `kind/name`.

        Numbers that are not finite become null in the file. Raises ValueError for values named kind or step.
        """
        if not self._is_main:
            return
        if reserved := {"kind", "step"} & values.keys():
            raise ValueError(f"a value cannot be named {reserved.pop()!r}, a key of every record; rename it")
        numbers = {name: float(value) for name, value in values.items()}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        if self._metrics is None:
            self._metrics = self._metrics_file.open("a", encoding="utf-8")
        line = json.dumps({"kind": kind, "step": int(step), **finite}, allow_nan=False)
        with naming(self._metrics_file):
            print(line, file=self._metrics, flush=True)
        with naming(self._events_folder):
            writer = self._summary_writer()
            for name, value in numbers.items():
                writer.add_scalar(f"{kind}/{name}", value, step)
        if kind == "evaluation":
            self._write_table()

    def image(self, tag: str, step: int, image: Image.Image | np.ndarray) -> None:
        """Write a TensorBoard image: a PIL image or (H, W, 3) uint8 RGB. Raises ValueError for other arrays."""
        if not self._is_main:
            return
        pixels = np.asarray(image.convert("RGB") if isinstance(image, Image.Image) else image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
            raise ValueError(f"image {tag!r} is {pixels.dtype} of shape {pixels.shape}; expected uint8, (H, W, 3)")
        with naming(self._events_folder):
            self._summary_writer().add_image(tag, pixels, step, dataformats="HWC")

    def rewind(self, step: int, *, undone: str | None = None) -> None:
        """Drop the records after `step`: call it when resuming, before the first record; -1 drops all.

        undone   kind of record that is still to be written at `step`, and dropped there too

        A half-written last line of a killed run is dropped too. Raises RuntimeError after the first record, and
        ValueError for any other line that is not a record; the file stays unchanged then.
        """
        if not self._is_main:
            return
        if self._metrics is not None or self._events is not None:
            raise RuntimeError("rewind comes too late, this run has written records; call it before the first one")
        self._purge_step = step + 1
        path = self._metrics_file
        if not path.exists():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        records = [(line, json.loads(line)) for line in _complete_lines(lines, path)]
        kept = [line for line, found in records if (found["step"], found.get("kind") == undone) <= (step, False)]
        if len(kept) < len(lines):
            with naming(path):
                _replace_text(path, "".join(kept))
            self.say(f"{path.name}: {counted(len(lines) - len(kept), 'record')} after step {step} dropped")

    def _write_table(self) -> None:
        path = self._metrics_file.with_suffix(".csv")
        with naming(path):
            _replace_text(path, metrics_table(self._metrics_file))

    def close(self) -> None:
        """Flush and close the files; later calls do nothing."""
        if self._metrics is not None:
            self._write_table()
        if self._events is not None:
            with naming(self._events_folder):
                self._events.close()
        for path, file in ((self._metrics_file, self._metrics), (self._log_file, self._log)):
            if file is not None:
                with naming(path):
                    file.close()
        self._log = self._metrics = self._events = None
        self._is_main = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _summary_writer(self) -> "SummaryWriter":
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter  # here, as its import takes seconds

            self._events = SummaryWriter(str(self._events_folder), purge_step=self._purge_step, flush_secs=30)
        return self._events


def metrics_table(path: Path) -> str:
    """A metrics file as CSV: a row per record, a column per name; cells of other kinds of records are empty."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    names = dict.fromkeys(["kind", "step", *(name for record in records for name in record)])
    text = io.StringIO()
    writer = csv.DictWriter(text, list(names), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to an OSError inside that names no file: the system names a file in errors of opening, not of
    writing."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def progress(iterable: Iterable[Item], *, total: int | None, description: str, enabled: bool) -> Iterable[Item]:
    """The iterable, with a progress bar if enabled and stderr is a terminal."""
    if not (enabled and sys.stderr.isatty()):
        return iterable
    return tqdm(iterable, total=total, desc=description, leave=False, dynamic_ncols=True)


def _complete_lines(lines: list[str], path: Path) -> list[str]:
    """All lines except an unfinished last one. Raises ValueError for a line that is not a record."""
    complete = [line for line in lines if line.endswith("\n")]
    for number, line in enumerate(complete, start=1):
        try:
            json.loads(line)["step"] + 0
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number}: not a record ({error}); repair or remove the line") from error
    return complete


def _replace_text(path: Path, text: str) -> None:
    """Replace a file atomically: after a crash it is the old or the new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
