"""Part files: bits survive, an unfinished line is dropped, a run of something else is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from datasets.structures import Georeference
from engine.checkpoints.run_folder import RunFolderError
from engine.prediction.parts import PartFile, Recorded, begin_folder
from engine.prediction.records import FoundObjects, ImageResult


def result(image_id: int, *, found: int = 3, georeference: Georeference | None = None) -> ImageResult:
    rng = np.random.default_rng(image_id)
    objects = FoundObjects(rng.normal(100, 40, (found, 4)), rng.random(found), rng.integers(0, 5, found))
    return ImageResult(
        *(image_id, f"a/{image_id}.png", f"/x/{image_id}.png", 640, 480, "done"),
        objects=objects,
        predicted_count=rng.random() * 10,
        georeference=georeference,
    )


def skipped(image_id: int) -> ImageResult:
    return ImageResult(image_id, f"{image_id}.png", "", 0, 0, "skipped", "is empty")


def test_what_is_appended_is_read_bit_for_bit_by_ascending_id(tmp_path: Path) -> None:
    place = Georeference("EPSG:32633", (0.1, 0.0, 500_000.3, 0.0, -0.1, 5_000_000.7))
    written = [result(7, georeference=place), result(2, found=0), skipped(5)]
    with PartFile(tmp_path, 0) as part:
        part.append(written[:1])
    with PartFile(tmp_path, 1) as part:
        part.append(written[1:])
    found = list(Recorded.scan(tmp_path).results())
    assert [each.image_id for each in found] == [2, 5, 7]
    for ours, theirs in zip(found, sorted(written, key=lambda each: each.image_id), strict=True):
        assert (ours.path, ours.status, ours.reason, ours.predicted_count, ours.georeference) == (
            *(theirs.path, theirs.status, theirs.reason, theirs.predicted_count, theirs.georeference),
        )
        if theirs.objects is not None and ours.objects is not None:
            for name in ("boxes", "scores", "labels"):
                mine, wanted = getattr(ours.objects, name), getattr(theirs.objects, name)
                assert mine.dtype == wanted.dtype
                assert np.array_equal(mine, wanted)
        else:
            assert ours.objects is None
            assert theirs.objects is None


@pytest.mark.parametrize("keep", [1, 20, -1])
def test_a_line_that_was_cut_by_a_kill_is_as_if_never_written(tmp_path: Path, keep: int) -> None:
    with PartFile(tmp_path, 0) as part:
        part.append([result(1)])
        part.append([result(2)])
    path = tmp_path / "parts" / "0.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][:keep])
    assert set(Recorded.scan(tmp_path).places) == {1}
    with PartFile(tmp_path, 0) as part:
        part.append([result(2)])
    assert path.read_bytes() == b"".join(lines)


def test_a_folder_of_another_prediction_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    begin_folder(folder, {"conf": 0.25, "sources": ["a"]}, resumed=False)
    begin_folder(folder, {"conf": 0.25, "sources": ["a"]}, resumed=True)
    with pytest.raises(RunFolderError, match=r"was begun with conf 0\.25, not 0\.5; repeat its command"):
        begin_folder(folder, {"conf": 0.5, "sources": ["a"]}, resumed=True)
    with pytest.raises(RunFolderError, match="holds no prediction to continue"):
        begin_folder(tmp_path, {"conf": 0.5}, resumed=True)
    assert json.loads((folder / "prediction.json").read_text())["conf"] == 0.25
