"""Folders that a run or an evaluation may write to: nothing is overwritten silently."""

import errno
from contextlib import suppress
from itertools import count
from pathlib import Path

import torch

from engine.checkpoints.checkpoint import Checkpoint
from engine.checkpoints.run_folder import Resumption, RunFolderError, load_newest, saved_progress
from engine.checkpoints.sealed_file import CheckpointError, DamagedError
from engine.distributed.processes import Processes, any_process

MARKS = ("run.lock", "status.json")
"""Files that every run writes, and nothing else does"""
WRITTEN = (*MARKS, "config.yaml", "log.txt", "metrics.jsonl", "tensorboard", "evaluation")
"""Files of a run besides checkpoints"""
OF_A_RUN = (*WRITTEN, "check.jsonl", "*.pth", "*.tmp", "*.partial", "evaluation_*", "calibrated_queries*.yaml", ".*")
"""Files that may lie beside a checkpoint that was copied without MARKS"""
SHOWN = 5


def is_run_folder(folder: Path) -> bool:
    """Whether the folder holds files of a run."""
    return any((folder / name).exists() for name in (*MARKS, "metrics.jsonl"))


def same_folder(folder: Path, other: Path) -> bool:
    """Whether two paths name the same existing folder, links resolved."""
    return folder.exists() and other.exists() and folder.samefile(other)


def require_folder(folder: Path, start: Resumption | None, processes: Processes) -> None:
    """Raises RunFolderError, on all ranks, if the run would overwrite anything but its own earlier state.

    start   the checkpoint to resume: in the folder that holds it, or as a branch in an unused folder; None: a new run

    Only rank 0, which writes, inspects the folder.
    """
    problem = in_the_way(folder, start) if processes.is_main else None
    if any_process(problem is not None, processes):
        raise RunFolderError(problem or f"{folder}: unusable for {processes.name(0)}, see its message")


def in_the_way(folder: Path, start: Resumption | None) -> str | None:
    """The message if the run may not write in the folder."""
    if start is None:
        return _taken(folder)
    home = start.path.parent
    if same_folder(folder, home):
        return _foreign_files(start.path) or _further_state(start)
    if (problem := _taken(folder)) is None:
        return None
    return (
        f"{start.path} is of the run in {home}, and runtime.output_dir is another folder: {problem}. A branch of the "
        f"run needs a folder that is empty or does not exist; without --set runtime.output_dir it resumes in {home}"
    )


def _taken(folder: Path) -> str | None:
    """The message if a new run would overwrite something; a run that never saved a checkpoint does not count."""
    if any(folder.glob("last*.pth")):
        return (
            f"{folder} already holds a run: resume it by --resume {folder / 'last.pth'}, choose another "
            "runtime.output_dir, or remove it"
        )
    remedy = "choose another runtime.output_dir, or move them away"
    found = [name for name in ("best.pth", *WRITTEN) if (folder / name).exists()]
    if "best.pth" in found or "evaluation" in found or saved_progress(folder).step > 0:
        return f"{folder} already holds {', '.join(found)} of a run; {remedy}"
    if found and not any(name in found for name in MARKS):
        return f"{folder} holds {', '.join(found)}, which a run would write over; {remedy}"
    return None


def _foreign_files(path: Path) -> str | None:
    """The message if a checkpoint lies among unrelated files, as in a folder of downloads."""
    if is_run_folder(path.parent):
        return None
    names = sorted(p.name for p in path.parent.iterdir() if p != path and not any(map(p.match, OF_A_RUN)))
    if not names:
        return None
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    where = f"resume from {path.resolve()}, which it links to, or name" if path.is_symlink() else "name"
    return (
        f"{path.parent}, where {path.name} lies, is no run folder: it holds {', '.join(names[:SHOWN])}{more}; {where} "
        "a folder that is empty or does not exist by --set runtime.output_dir=FOLDER, or move the checkpoint into one"
    )


def _further_state(start: Resumption) -> str | None:
    """The message if the folder's newest intact checkpoint is not the state to resume from."""
    last = start.path.with_name("last.pth")
    if start.path.name == last.name or start.warning is not None:
        return None
    try:
        newest = load_newest(last)
    except DamagedError:
        return None  # no state to lose
    except CheckpointError as error:
        return f"{last} would be overwritten: {error}"
    if _same_state(newest.checkpoint, start.checkpoint):
        return None
    return (
        f"{start.path} ({start.checkpoint.progress}) is not the newest state of its folder, and to train on from "
        f"it would overwrite {newest.path} ({newest.checkpoint.progress}): resume from {newest.path}, or start a "
        "branch in a folder that is empty or does not exist by --set runtime.output_dir=FOLDER"
    )


def _same_state(a: Checkpoint, b: Checkpoint) -> bool:
    if a.progress.position != b.progress.position or a.model.keys() != b.model.keys():
        return False
    return all(torch.equal(value, b.model[name]) for name, value in a.model.items())


def open_evaluation(path: Path, named: Path | None, processes: Processes) -> Path:
    """Create an empty folder for the results of a checkpoint's evaluation, on rank 0.

    path    the checkpoint
    named   output folder, which must be empty or missing. None: evaluation_STEM beside the checkpoint if that is in a
            run folder, otherwise runs/eval_STEM; with -2, -3, ... appended if the name is taken

    Raises RunFolderError on all ranks.
    """
    beside = is_run_folder(path.parent)
    folder = named or (path.parent / f"evaluation_{path.stem}" if beside else Path("runs") / f"eval_{path.stem}")
    problem = None
    if processes.is_main:
        try:
            folder = _made(folder) if named is not None else _made_anew(folder)
        except OSError as error:
            problem = (
                f"{folder}: no folder for results ({error.strerror}); name one that is empty or does not exist by "
                "--set runtime.output_dir=FOLDER"
            )
    if any_process(problem is not None, processes):
        raise RunFolderError(problem or f"{folder}: unusable for {processes.name(0)}, see its message")
    return folder


def _made(folder: Path) -> Path:
    """Create the folder. Raises FileExistsError if it exists and is not empty."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        if not folder.is_dir() or any(folder.iterdir()):
            raise FileExistsError(errno.EEXIST, "it is not empty") from None
    return folder


def _made_anew(folder: Path) -> Path:
    for number in count(1):
        with suppress(FileExistsError):
            return _made(folder if number == 1 else folder.with_name(f"{folder.name}-{number}"))
    raise AssertionError
