"""Torch files with a checksum: written atomically, verified when read, loaded without executing code.

A file that this project writes ends with a seal: the SHA-256 of all bytes before it, stored as the comment of the zip
archive. For `torch.load` and zip tools it stays an ordinary file. The CRC-32 sums inside a zip archive cover its
content only, and torch does not check them: it loads a flipped byte as a wrong weight.
"""

import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

SEAL_MARK = b"\x47\x00sha256:"
"""Length of the zip comment (71, little-endian), then its beginning"""
SEAL_LENGTH = len(SEAL_MARK) + 64


class CheckpointError(Exception):
    """A checkpoint that is unreadable or does not fit."""


class DamagedError(CheckpointError):
    """A checkpoint that is missing, truncated or altered; an earlier one may be intact."""


def write_archive(path: Path, content: dict[str, Any]) -> None:
    """Write a sealed torch file, synced to disk on return; until then the old file stays."""
    temporary = write_temporary(path, content)
    os.replace(temporary, path)
    sync_folder(path.parent)


def write_temporary(path: Path, content: dict[str, Any]) -> Path:
    """Write the sealed file beside `path`, to be moved there; a failure removes it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w+b") as file:
            torch.save(content, file)
            file.seek(-2, os.SEEK_END)  # the length of the zip comment: none so far
            digest = _digest(file, file.tell())
            file.write(SEAL_MARK + digest)
            file.flush()
            os.fsync(file.fileno())
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            raise error.__context__ from None  # torch reports a wrong position if a write fails
        raise
    return temporary


def sync_folder(folder: Path) -> None:
    """Sync a folder: created, renamed and removed names survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_archive(path: Path, *, old_format: bool = False) -> Any:
    """Load the tensors and plain values of a torch file without executing code.

    old_format   also read files of torch before 1.6, which are not zip archives and have no checksums

    Verifies every byte of a sealed file, and the content of other archives. Raises DamagedError for a missing,
    truncated or damaged file, or one with other objects inside.
    """
    if not path.is_file():
        raise DamagedError(f"{path}: no such checkpoint")
    try:
        damaged = None if old_format and not _starts_as_archive(path) else _damaged_part(path)
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise DamagedError(f"{path}: not readable as a checkpoint ({reason}); take an earlier one") from error
    raise DamagedError(f"{path}: damaged ({damaged}); take an earlier one")


def is_sealed(path: Path) -> bool:
    """Whether the file ends with a seal, right or wrong."""
    with open(path, "rb") as file:
        return _seal(file)[:-64] == SEAL_MARK


def _starts_as_archive(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _damaged_part(path: Path) -> str | None:
    if is_sealed(path):
        with open(path, "rb") as file:
            seal = _seal(file)
            wrong = _digest(file, file.tell() - SEAL_LENGTH) != seal[-64:]
        return "SHA-256 mismatch" if wrong else None
    with zipfile.ZipFile(path) as archive:
        part = archive.testzip()
    return None if part is None else f"part {part}"


def _seal(file: BinaryIO) -> bytes:
    """The last SEAL_LENGTH bytes of the file, its seal if it has one; empty for a shorter file."""
    length = file.seek(0, os.SEEK_END)
    if length < SEAL_LENGTH:
        return b""
    file.seek(-SEAL_LENGTH, os.SEEK_END)
    return file.read()


def _digest(file: BinaryIO, length: int) -> bytes:
    """SHA-256 of the first `length` bytes, in hexadecimal digits; the file position ends behind them."""
    digest = hashlib.sha256()
    file.seek(0)
    while length > 0:
        block = file.read(min(length, 1 << 20))
        digest.update(block)
        length -= len(block)
    return digest.hexdigest().encode()
