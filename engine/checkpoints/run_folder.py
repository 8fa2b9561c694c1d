"""The folder of a run: its lock, its latest checkpoints, and `status.json` for monitoring."""

import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Self, TextIO

import torch

from engine.checkpoints.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint
from engine.checkpoints.sealed_file import DamagedError, sync_folder, write_temporary
from engine.distributed.processes import Processes, gather_rows

NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""Errors of file systems without locks, where a second run is not detected"""
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Errors of a write: disk or quota full, or read-only"""


class RunFolderError(Exception):
    """A run cannot use its folder: another run locks it, or it cannot be written."""


@dataclass(frozen=True)
class Resumption:
    """The checkpoint that a run resumes from."""

    checkpoint: Checkpoint
    path: Path
    """Its file"""
    warning: str | None = None
    """Why it is not the requested file"""


def load_newest(path: Path) -> Resumption:
    """The checkpoint; if it is damaged, the newest intact one before it (last.1.pth before last.pth).

    Raises CheckpointError for a file of another kind, DamagedError if no intact one exists.
    """
    try:
        return Resumption(load_checkpoint(path), path)
    except DamagedError as error:
        for earlier in _earlier_files(path):
            with suppress(DamagedError):
                found = load_checkpoint(earlier)
                return Resumption(found, earlier, f"warning: {error}. Resuming from {earlier} ({found.progress})")
        raise


class RunFolder:
    """Context in which this run locks its folder; creates the folder.

    path      the folder
    keep      number of latest checkpoints to keep: last.pth, last.1.pth before it, ...; best.pth is extra
    resumed   the file that the run resumes from
    codes     exit code of each expected error, for status.json

    Only rank 0 writes. Every method that may raise RunFolderError must be called on all ranks and raises on all of
    them, except `save_last` and `save_best`.
    """

    def __init__(
        self, path: Path, processes: Processes, *, keep: int, resumed: Path | None, codes: Mapping[type[Exception], int]
    ) -> None:
        self.path = path
        self.last = path / "last.pth"
        self._processes = processes
        self._keep = keep
        # A damaged file must not replace an intact one, nor a link, whose file may change.
        own = resumed is not None and resumed.resolve() == self.last.resolve()
        self._last_is_whole = own and not self.last.is_symlink()
        self._codes = codes
        self._lock: TextIO | None = None
        self._saved = Progress()

    def __enter__(self) -> Self:
        problem = None
        if self._processes.is_main:
            try:
                self._open()
            except (OSError, RunFolderError) as error:
                problem = str(error) if isinstance(error, RunFolderError) else self._not_writable(error)
        self._raise_everywhere(problem)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        """Turn an error of writing a file in the folder (logs, results) into a RunFolderError."""
        if self._lock is None:
            return
        unwritten = error if isinstance(error, OSError) and self._is_of_writing(error) else None
        kind = RunFolderError if unwritten is not None else kind
        code = 0 if kind is None else next((code for error, code in self._codes.items() if issubclass(kind, error)), 1)
        state = "finished" if kind is None else "interrupted" if code == 75 else "failed"
        with suppress(OSError):
            self._write_status(state, code)
        self._lock.close()
        if unwritten is not None:
            raise RunFolderError(self._not_saved(Path(unwritten.filename), unwritten)) from unwritten

    def require_space(self, checkpoint_bytes: int) -> None:
        """Raises RunFolderError unless the disk has space for all further checkpoints of this size."""
        problem = lacking_space(self.path, checkpoint_bytes, keep=self._keep) if self._processes.is_main else None
        self._raise_everywhere(problem)

    def save_last(self, checkpoint: Checkpoint) -> None:
        """Write last.pth; the previous one becomes last.1.pth. An intact checkpoint exists at every moment."""
        try:
            temporary = write_temporary(self.last, checkpoint.content())
            if self._last_is_whole:
                self._shift()
            os.replace(temporary, self.last)
            sync_folder(self.path)
        except OSError as error:
            raise RunFolderError(self._not_saved(self.last, error)) from error
        self._last_is_whole = True
        self._saved = checkpoint.progress
        with suppress(OSError):  # the checkpoint matters more
            self._write_status("running", None)

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write best.pth."""
        try:
            save_checkpoint(self.path / "best.pth", checkpoint)
        except OSError as error:
            raise RunFolderError(self._not_saved(self.path / "best.pth", error)) from error

    def _open(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        lock = (self.path / "run.lock").open("a+", encoding="utf-8")
        try:
            # lockf, not flock: DataLoader workers that outlive this process for a moment do not inherit the lock.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                lock.seek(0)
                holder = lock.read().strip() or "another run"
                lock.close()
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise
                raise RunFolderError(
                    f"{self.path} is in use by {holder}; wait until it ends, or set another runtime.output_dir"
                ) from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}, since {_now()}\n")
        lock.flush()
        self._lock = lock
        for stray in [*self.path.glob("*.pth.tmp"), *self.path.glob("*.json*.partial")]:
            stray.unlink()  # of a run that was killed while writing
        _own_files(self.path)
        if self._last_is_whole:
            self._saved = saved_progress(self.path)
        self._write_status("running", None)

    def _shift(self) -> None:
        names = [self.last, *(_earlier_file(self.last, i) for i in range(1, self._keep))]
        if len(names) > 1 and names[1].exists() and names[1].samefile(self.last):
            return  # a run was killed between here and the replacement of last.pth
        for newer, older in reversed(list(pairwise(names[1:]))):
            if newer.exists():
                os.replace(newer, older)
        if len(names) > 1 and self.last.exists():
            link = names[1].with_name(names[1].name + ".tmp")
            try:
                os.link(self.last, link)  # last.pth exists at every moment
                os.replace(link, names[1])
            except OSError:  # a file system without links
                os.replace(self.last, names[1])

    def _write_status(self, state: str, exit_code: int | None) -> None:
        status = {"state": state, "exit_code": exit_code, "epoch": self._saved.epoch, "step": self._saved.step}
        status |= {"time": _now(), "process": os.getpid(), "host": socket.gethostname()}
        partial = self.path / "status.json.partial"
        partial.write_text(json.dumps(status, indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.path / "status.json")

    def _raise_everywhere(self, problem: str | None) -> None:
        failed = gather_rows(torch.tensor([problem is not None], dtype=torch.int64), self._processes).any()
        if failed:
            raise RunFolderError(problem or f"{self.path}: unusable for {self._processes.name(0)}, see its message")

    def _is_of_writing(self, error: OSError) -> bool:
        named = isinstance(error.filename, (str, os.PathLike)) and Path(error.filename).is_relative_to(self.path)
        return named and error.errno in NO_ROOM | {errno.EACCES, errno.EPERM}

    def _not_writable(self, error: OSError) -> str:
        return f"{self.path}: not writable ({error.strerror}); set runtime.output_dir to a folder that is"

    def _not_saved(self, path: Path, error: OSError) -> str:
        free = shutil.disk_usage(self.path).free
        return (
            f"{path}: not written ({error.strerror}, {free / 1e6:.0f} MB free); the earlier checkpoints are intact. "
            f"Free some space, then resume with --resume {self.last}"
        )


def lacking_space(folder: Path, checkpoint_bytes: int, *, keep: int) -> str | None:
    """The message if the disk has no space for all further checkpoints of this size."""
    there = [folder / "last.pth", *_earlier_files(folder / "last.pth"), folder / "best.pth"]
    files = keep + 2  # best.pth, and one temporary file
    needed = files * checkpoint_bytes - sum(path.stat().st_size for path in there if path.exists())
    free = shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.exists())).free
    if free >= needed:
        return None
    return (
        f"{folder}: {files} checkpoints of {checkpoint_bytes / 1e6:.0f} MB need {needed / 1e6:.0f} MB, but "
        f"{free / 1e6:.0f} MB are free; free some space, set runtime.output_dir to another disk, or lower "
        "runtime.keep_checkpoints"
    )


def saved_progress(folder: Path) -> Progress:
    """Epoch and step of the last checkpoint saved in a run folder, from its status.json; 0 without one."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
        return Progress(epoch=int(status["epoch"]), step=int(status["step"]))
    return Progress()


def _own_files(folder: Path) -> None:
    """Copy files that are links into another folder (`cp -al`, `cp -as`): logs are appended to.

    Checkpoints are replaced as a whole, and the lock file is in use: both stay.
    """
    for file in folder.rglob("*"):
        shared = file.is_file() and (file.is_symlink() or file.stat().st_nlink > 1)
        if shared and file.suffix != ".pth" and file.name != "run.lock":
            partial = file.with_name(file.name + ".partial")
            shutil.copyfile(file, partial)
            os.replace(partial, file)


def _earlier_file(path: Path, age: int) -> Path:
    return path.with_name(f"{path.stem}.{age}{path.suffix}")


def _earlier_files(path: Path) -> list[Path]:
    """Existing earlier checkpoints, newest first."""
    found = {}
    for file in path.parent.glob(f"{path.stem}.*{path.suffix}"):
        age = file.name.removeprefix(f"{path.stem}.").removesuffix(path.suffix)
        if age.isdecimal():
            found[int(age)] = file
    return [found[age] for age in sorted(found)]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
