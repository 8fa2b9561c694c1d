"""Results on disk while a prediction runs: each process appends finished images to its own file.

A killed run loses nothing that was finished; a continued one reads the files of all processes and skips those images.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

from datasets.structures import Georeference
from engine.checkpoints.run_folder import RunFolderError
from engine.prediction.records import FoundObjects, ImageResult

IDENTITY = "prediction.json"
"""What a run is of: checkpoint, sources and options"""


class PartFile:
    """Context in which one process appends its results to `parts/RANK.jsonl`."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.path = folder / "parts" / f"{rank}.jsonl"
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _drop_unfinished_line(self.path)
        self._file = self.path.open("ab")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, results: list[ImageResult]) -> None:
        """Append and hand over to the system, so that a killed process loses nothing. Raises OSError."""
        assert self._file is not None  # inside the context
        self._file.write(b"".join(json.dumps(to_json(result)).encode() + b"\n" for result in results))
        self._file.flush()


@dataclass(frozen=True)
class Recorded:
    """The results in all part files of a folder, without holding them in memory."""

    places: dict[int, tuple[Path, int]]
    """Image id -> file, and offset of its line"""

    @classmethod
    def scan(cls, folder: Path) -> Self:
        places: dict[int, tuple[Path, int]] = {}
        for path in sorted((folder / "parts").glob("*.jsonl")):
            offset = 0
            with path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        places.setdefault(json.loads(line)["image_id"], (path, offset))
                    offset += len(line)
        return cls(places)

    def results(self) -> Iterator[ImageResult]:
        """By ascending image id."""
        for image_id in sorted(self.places):
            path, offset = self.places[image_id]
            with path.open("rb") as file:
                file.seek(offset)
                yield from_json(json.loads(file.readline()))


def to_json(result: ImageResult) -> dict[str, Any]:
    """Numbers are written so that reading gives the same bits."""
    content = {entry.name: getattr(result, entry.name) for entry in fields(result)}
    found = result.objects
    if found is not None:
        columns = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels}
        content["objects"] = {name: values.tolist() for name, values in columns.items()}
    if result.georeference is not None:
        content["georeference"] = asdict(result.georeference)
    return content


def from_json(content: Mapping[str, Any]) -> ImageResult:
    """The record that `to_json` wrote."""
    result = ImageResult(**content)
    if (found := content["objects"]) is not None:
        boxes = np.array(found["boxes"], np.float64).reshape(-1, 4)
        objects = FoundObjects(boxes, np.array(found["scores"], np.float64), np.array(found["labels"], np.int64))
        result = replace(result, objects=objects)
    if (place := content["georeference"]) is not None:
        result = replace(result, georeference=Georeference(place["crs"], tuple(place["transform"])))
    return result


def begin_folder(folder: Path, identity: Mapping[str, Any], *, resumed: bool) -> None:
    """Create the folder of a run, or check that the run to continue is the same one.

    identity   what decides on the results; plain values

    Raises RunFolderError.
    """
    path = folder / IDENTITY
    if not resumed:
        folder.mkdir(parents=True)
        path.write_text(json.dumps(dict(identity), indent=1) + "\n", encoding="utf-8")
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunFolderError(f"--continue {folder}: holds no prediction to continue ({error})") from None
    for name in [*identity, *earlier]:
        if identity.get(name) != earlier.get(name):
            raise RunFolderError(
                f"--continue {folder}: was begun with {name} {_shown(earlier.get(name))}, not "
                f"{_shown(identity.get(name))}; repeat its command, or give another --out"
            )


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _drop_unfinished_line(path: Path) -> None:
    """Of a process that was killed while it wrote."""
    if not path.exists():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
