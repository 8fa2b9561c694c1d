"""The run folder: one run at a time, whole checkpoints at every moment, room checked before hours are spent."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.checkpoints import run_folder
from engine.checkpoints.checkpoint import Checkpoint, CheckpointError, Progress, load_checkpoint, weights_checkpoint
from engine.checkpoints.run_folder import RunFolder, RunFolderError, load_newest
from engine.checkpoints.sealed_file import DamagedError
from engine.distributed.processes import Processes
from engine.distributed.signals import Interrupted

ALONE = Processes(rank=0, world_size=1, device=torch.device("cpu"))
CODES: dict[type[Exception], int] = {CheckpointError: 4, Interrupted: 75}
ROOT = Path(__file__).parents[3]

HOLD = """
import sys, time, os
from pathlib import Path
sys.path.insert(0, {root!r})
import torch
from engine.distributed.processes import Processes
from engine.checkpoints.run_folder import RunFolder
processes = Processes(rank=0, world_size=1, device=torch.device("cpu"))
with RunFolder(Path({folder!r}), processes, keep=2, resumed=None, codes={{}}):
    if os.fork() == 0:  # as a loader worker
        time.sleep(60)
        os._exit(0)
    print("holding", flush=True)
    time.sleep(60)
"""


def checkpoint(step: int) -> Checkpoint:
    weights = weights_checkpoint({"weight": torch.full((50,), float(step))}, config="", categories=["a"])
    return replace(weights, progress=Progress(step=step))


def held(path: Path, *, keep: int = 2, resumed: Path | None = None) -> RunFolder:
    return RunFolder(path, ALONE, keep=keep, resumed=resumed, codes=CODES)


def status(folder: Path) -> dict:
    return json.loads((folder / "status.json").read_text())


def steps(folder: Path) -> dict[str, int]:
    return {path.name: load_checkpoint(path).progress.step for path in folder.glob("*.pth")}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (1, {"last.pth": 5}),
        (2, {"last.pth": 5, "last.1.pth": 4}),
        (4, {"last.pth": 5, "last.1.pth": 4, "last.2.pth": 3, "last.3.pth": 2}),
    ],
)
def test_the_latest_checkpoints_are_kept(tmp_path: Path, keep: int, expected: dict[str, int]) -> None:
    with held(tmp_path, keep=keep) as folder:
        for step in range(1, 6):
            folder.save_last(checkpoint(step))
        folder.save_best(checkpoint(3))
    assert steps(tmp_path) == expected | {"best.pth": 3}
    assert not list(tmp_path.glob("*.tmp"))


def test_without_links_they_are_kept_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    with held(tmp_path) as folder:
        for step in (1, 2):
            folder.save_last(checkpoint(step))
    assert steps(tmp_path) == {"last.pth": 2, "last.1.pth": 1}


def test_a_whole_checkpoint_is_there_at_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever call a save ends in, as a killed process does, the newest whole checkpoint is loaded."""

    class Killed(BaseException):
        pass

    calls, end_at = [0], [0]

    def watched(function):  # type: ignore[no-untyped-def]
        def call(*given: object) -> object:
            calls[0] += 1
            if calls[0] == end_at[0]:
                raise Killed
            return function(*given)

        return call

    for name in ("fsync", "replace", "link"):
        monkeypatch.setattr(os, name, watched(getattr(os, name)))
    for end in range(1, 20):
        path = tmp_path / str(end)
        with held(path) as folder:
            folder.save_last(checkpoint(1))
            folder.save_last(checkpoint(2))
            calls[0], end_at[0] = 0, end
            try:
                folder.save_last(checkpoint(3))
            except Killed:
                pass
            else:
                assert end > 5  # file, link, its replace, the file's, the folder
                return
            finally:
                end_at[0] = 0
        found = load_newest(path / "last.pth")
        assert found.checkpoint.progress.step in (2, 3)
        assert found.warning is None
        assert end < 15


@pytest.mark.parametrize("keep", [2, 3])
def test_a_kill_between_the_two_renames_of_a_save_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    """There last.pth and last.1.pth are one file, of which a rename onto the other does nothing."""
    with held(tmp_path, keep=keep) as folder:
        for step in range(1, keep + 1):
            folder.save_last(checkpoint(step))
        real = os.replace

        def killed(source: Path, target: Path) -> None:
            if Path(target).name == "last.pth":
                raise KeyboardInterrupt
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                folder.save_last(checkpoint(keep + 1))
    assert (tmp_path / "last.1.pth").samefile(tmp_path / "last.pth")
    with held(tmp_path, keep=keep, resumed=tmp_path / "last.pth") as folder:
        folder.save_last(checkpoint(keep + 1))
    assert not list(tmp_path.glob("*.tmp"))
    kept = {"last.pth": keep + 1, "last.1.pth": keep} | ({"last.2.pth": keep - 1} if keep == 3 else {})
    assert steps(tmp_path) == kept


def test_a_damaged_checkpoint_is_passed_over_with_one_warning(tmp_path: Path) -> None:
    last = tmp_path / "last.pth"
    with held(tmp_path, keep=3) as folder:
        for step in (1, 2, 3):
            folder.save_last(checkpoint(step))
    flip(last)
    found = load_newest(last)
    assert (found.checkpoint.progress.step, found.path) == (2, tmp_path / "last.1.pth")
    assert found.warning is not None
    assert str(last) in found.warning
    assert str(found.path) in found.warning
    with held(tmp_path, keep=3, resumed=found.path) as folder:
        folder.save_last(checkpoint(4))  # the damaged file takes no whole one's place
    assert steps(tmp_path) == {"last.pth": 4, "last.1.pth": 2, "last.2.pth": 1}
    for path in tmp_path.glob("last*.pth"):
        flip(path)
    with pytest.raises(DamagedError, match=r"last\.pth: damaged"):
        load_newest(last)


def test_a_missing_checkpoint_has_one_before_it(tmp_path: Path) -> None:
    with held(tmp_path) as folder:
        folder.save_last(checkpoint(1))
    (tmp_path / "last.pth").rename(tmp_path / "last.1.pth")
    assert load_newest(tmp_path / "last.pth").checkpoint.progress.step == 1


def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD.format(root=str(ROOT), folder=str(tmp_path))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "holding\n"
            with pytest.raises(RunFolderError, match=rf"in use by process {holder.pid} on \S+, since .*output_dir"):
                held(tmp_path).__enter__()
            assert status(tmp_path)["process"] == holder.pid  # untouched
            holder.kill()
            holder.wait()
            with held(tmp_path):  # although a child of the dead run still lives
                assert status(tmp_path)["process"] == os.getpid()
        finally:
            os.killpg(holder.pid, signal.SIGKILL)


def test_strays_of_a_killed_run_are_swept(tmp_path: Path) -> None:
    for name in ("last.pth.tmp", "last.1.pth.tmp", "metrics.jsonl.partial", "notes.tmp"):
        (tmp_path / name).touch()
    with held(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"notes.tmp", "run.lock", "status.json"}


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (None, "finished", 0),
        (Interrupted(), "interrupted", 75),
        (DamagedError(), "failed", 4),
        (KeyError(), "failed", 1),
    ],
)
def test_the_status_tells_how_a_run_ended(tmp_path: Path, error: Exception | None, state: str, code: int) -> None:
    def work() -> None:
        with held(tmp_path) as folder:
            assert (status(tmp_path)["state"], status(tmp_path)["exit_code"]) == ("running", None)
            folder.save_last(checkpoint(7))
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    found = status(tmp_path)
    assert [found[key] for key in ("state", "exit_code", "epoch", "step")] == [state, code, 0, 7]


def test_room_is_checked_for_all_checkpoints_to_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 4 * 10**6))
    with held(tmp_path, keep=2) as folder:
        folder.require_space(10**6)  # two, the best, and one being written
        with pytest.raises(RunFolderError, match=r"need 8 MB, but 4 MB are free; .*keep_checkpoints") as caught:
            folder.require_space(2 * 10**6)
        assert str(tmp_path) in str(caught.value)
        (tmp_path / "last.pth").write_bytes(bytes(5 * 10**6))  # to be replaced
        folder.require_space(2 * 10**6)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match=r"file/run: not writable \(Not a directory\); set runtime\.output_dir"):
        held(tmp_path / "file" / "run").__enter__()


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with held(tmp_path) as folder:
        folder.save_last(checkpoint(1))
        with monkeypatch.context() as patch:
            patch.setattr(run_folder.os, "fsync", full)
            with pytest.raises(RunFolderError, match=r"last\.pth: not written \(No space left on device, .* MB free\)"):
                folder.save_last(checkpoint(2))
    assert steps(tmp_path) == {"last.pth": 1}
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (OSError(28, "No space left on device", "run/metrics.jsonl"), "run/metrics.jsonl"),
        (PermissionError(13, "Permission denied", "run/log.txt"), "run/log.txt"),
    ],
)
def test_an_error_of_writing_anything_in_the_folder_is_said_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with (
        pytest.raises(RunFolderError, match=rf"^{place}: not written .* MB free\).* --resume run/last\.pth$"),
        RunFolder(Path("run"), ALONE, keep=2, resumed=None, codes={RunFolderError: 2}),
    ):
        raise error
    assert [status(tmp_path / "run")[key] for key in ("state", "exit_code")] == ["failed", 2]


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(13, "Permission denied", "elsewhere/image.png"),
        OSError(28, "No space left on device", "/dev/shm/sem"),
        OSError(28, "No space left on device"),  # of a file that nobody named: no log, no result
    ],
)
def test_an_error_of_other_files_stays_itself(tmp_path: Path, error: OSError) -> None:
    with pytest.raises(type(error)) as caught, held(tmp_path / "run"):
        raise error
    assert caught.value is error
    assert status(tmp_path / "run")["exit_code"] == 1
