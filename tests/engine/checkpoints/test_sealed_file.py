"""Sealed files: no byte can change unnoticed, nothing is half-written, and others' tools still read them."""

import os
import stat
import zipfile
from pathlib import Path

import pytest
import torch

from engine.checkpoints import sealed_file as archive
from engine.checkpoints.sealed_file import SEAL_LENGTH, DamagedError, is_sealed, read_archive, write_archive

CONTENT = {"weight": torch.arange(40.0).view(5, 8), "names": ["a", "b"], "step": 3}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_archive(tmp_path / "last.pth", CONTENT)
    return tmp_path / "last.pth"


def test_a_sealed_file_is_an_ordinary_one(path: Path) -> None:
    assert is_sealed(path)
    for found in (
        read_archive(path),
        torch.load(path, weights_only=True),
        torch.load(path, weights_only=True, mmap=True),
    ):
        assert torch.equal(found["weight"], CONTENT["weight"])
        assert found["names"] == CONTENT["names"]
    with zipfile.ZipFile(path) as file:
        assert file.testzip() is None
        assert file.comment.startswith(b"sha256:")


def test_every_flipped_byte_is_noticed(path: Path) -> None:
    content = bytearray(path.read_bytes())
    accepted = []
    for position in range(len(content)):
        flip = 1 << position % 8
        content[position] ^= flip
        path.write_bytes(content)
        content[position] ^= flip
        try:
            read_archive(path)
        except DamagedError:
            continue
        if is_sealed(path):  # a broken seal is for the reader to refuse: files of other programs have none
            accepted.append(position)
    assert accepted == []


def test_every_truncation_is_noticed(path: Path) -> None:
    content = path.read_bytes()
    for length in [*range(0, len(content), 61), *range(len(content) - SEAL_LENGTH - 8, len(content))]:
        path.write_bytes(content[:length])
        assert not is_sealed(path)
        if length < len(content) - SEAL_LENGTH + 2:  # beyond, the archive without the seal is whole
            with pytest.raises(DamagedError, match=r"last\.pth"):
                read_archive(path)


def test_content_of_an_unsealed_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "theirs.pth"
    torch.save(CONTENT, path)
    assert not is_sealed(path)
    assert read_archive(path)["step"] == 3
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(40.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedError, match="damaged"):
        read_archive(path)


def test_the_order_of_writing_survives_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        assert is_sealed(source)
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(archive.os, "fsync", noted_fsync)
    monkeypatch.setattr(archive.os, "replace", noted_replace)
    write_archive(tmp_path / "last.pth", CONTENT)
    assert calls == ["file", "replace", "folder"]


def test_a_failing_write_leaves_the_old_file_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_archive(path, CONTENT | {"step": 4})
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pth"]


def test_a_write_that_torch_reports_as_another_error_is_named_as_such(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: object) -> None:
        try:
            raise OSError(28, "No space left on device")
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  as torch does on some full disks

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space left"):
        write_archive(path, CONTENT)
    assert [entry.name for entry in path.parent.iterdir()] == ["last.pth"]
