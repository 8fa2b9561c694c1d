"""Fill the disk, or make the run folder read-only: a one-line error, and the previous checkpoint is kept."""

import argparse
import ctypes
import json
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from engine.checkpoints.checkpoint import load_checkpoint
from engine.checkpoints.sealed_file import CheckpointError
from tests.chaos.finding import Finding
from tests.chaos.launch import FORK, Run
from tests.chaos.toy import BATCHES, STEPS, Toy
from tests.support.hooks import at_step

MEGABYTES = 6
"""Of the small disk: room for the toy's checkpoints"""
NEW_MOUNTS, NEW_USER = 0x20000, 0x10000000
"""CLONE_NEWNS, CLONE_NEWUSER of unshare(2)"""
PRIVATE, RECURSIVE = 1 << 18, 1 << 14
"""MS_PRIVATE, MS_REC of mount(2)"""
CAPABILITIES = 0x20080522
"""_LINUX_CAPABILITY_VERSION_3 of capset(2)"""


def measure(toy: Toy, options: argparse.Namespace) -> Iterator[Finding]:
    toy.uninterrupted()
    for case, work in {"full": fill_disk, "read-only": close_folder}.items():
        finding, results = Finding("disk", case), toy.root / "disk.json"
        results.unlink(missing_ok=True)
        # In namespaces of mounts and users that end with the process.
        process = FORK.Process(target=_write, args=(work, toy, results))
        process.start()
        process.join()
        if not results.exists():
            finding.add("experiment", [f"ended with code {process.exitcode}"])
            yield finding
            continue
        for place, problems in json.loads(results.read_text()):
            finding.add(place, problems)
        yield finding


def _write(work: Callable[[Toy], list[tuple[str, list[str]]]], toy: Toy, results: Path) -> None:
    partial_results = results.with_suffix(".partial")
    partial_results.write_text(json.dumps(work(toy)))
    os.rename(partial_results, results)


def fill_disk(toy: Toy) -> list[tuple[str, list[str]]]:
    """A disk of a few megabytes that another program fills at a step of the run."""
    disk, log = toy.folder("disk"), toy.root / "disk.txt"
    disk.mkdir()
    mount_small_disk(disk)
    found = []
    for left in (0, 100_000, 400_000):
        for step in range(BATCHES + 1, STEPS):
            folder, filler = disk / "run", disk / "filler"
            shutil.rmtree(folder, ignore_errors=True)
            filler.unlink(missing_ok=True)
            hook = partial(at_step, step, partial(fill, filler, left))
            problems = fail(toy, folder, log=log, hook=hook)
            filler.unlink(missing_ok=True)
            found.append((f"{left} bytes left from step {step} on", problems + toy.finish(folder)))
    fill(disk / "filler", 500_000)
    folder = disk / "another"
    found.append(("too little room at the start", refuse(toy.begin(folder), folder, log=log)))
    return found


def close_folder(toy: Toy) -> list[tuple[str, list[str]]]:
    """A folder that becomes read-only: from a step on, and at the start."""
    place, log = toy.folder("owned"), toy.root / "disk.txt"
    place.mkdir()
    give_up_rights()
    found = []
    for step in range(BATCHES + 1, STEPS):
        folder = place / f"run_{step}"
        hook = partial(at_step, step, partial(os.chmod, folder, 0o555))
        problems = fail(toy, folder, log=log, hook=hook)
        if step == BATCHES + 1:
            refused = refuse(toy.resume(folder), folder, log=log)
            found.append(("a folder read-only at the start", refused + unreadable(folder)))
        if folder.exists():
            os.chmod(folder, 0o755)
        found.append((f"read-only from step {step} on", problems + toy.finish(folder)))
    return found


def fail(toy: Toy, folder: Path, *, log: Path, hook: Callable[[], None]) -> list[str]:
    """Problems of a run that can no longer save: it must report that, and keep an intact checkpoint."""
    codes = Run(toy.begin(folder), log=log, hook=hook).wait()
    problems = [] if codes == [2] else [f"exit codes {codes}"]
    return problems + silence(log, folder, "MB free") + unreadable(folder)


def refuse(arguments: list[str], folder: Path, *, log: Path) -> list[str]:
    """Problems of a run that must not start."""
    codes = Run(arguments, log=log).wait()
    return ([] if codes == [2] else [f"exit codes {codes}"]) + silence(log, folder, "runtime.output_dir")


def silence(log: Path, folder: Path, remedy: str) -> list[str]:
    """The last line of the log, unless it is an error that names folder and remedy.

    TensorBoard's own thread may print a traceback at the same time: earlier lines, or the start of this one.
    """
    text = log.read_text()
    last = text.splitlines()[-1] if text else ""
    wrong = "error: " not in last or str(folder) not in last or remedy not in last
    return [f"the message is {last!r}"] if wrong else []


def unreadable(folder: Path) -> list[str]:
    try:
        load_checkpoint(folder / "last.pth")
    except CheckpointError as error:
        return [str(error)]
    return []


def fill(filler: Path, left: int) -> None:
    """Write a file that leaves `left` bytes of the disk free, rounded down to its blocks."""
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(shutil.disk_usage(filler.parent).free - left, 1))


def mount_small_disk(folder: Path) -> None:
    """For this process and its children only. Raises OSError if that is not allowed."""
    system, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    _check(system.unshare(NEW_MOUNTS | (NEW_USER if user else 0)))
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    _check(system.mount(b"none", b"/", None, PRIVATE | RECURSIVE, None))
    _check(system.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, f"size={MEGABYTES}m".encode()))


def give_up_rights() -> None:
    """Drop root's right to write read-only files, for this process and its children."""
    header, none = (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    _check(ctypes.CDLL(None, use_errno=True).capset(header, none))


def _check(result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
