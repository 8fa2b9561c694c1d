"""The benchmarks of data and evaluation run at a small size and compare what is equal."""

import json
from pathlib import Path

import pytest

from scripts.benchmark import main
from scripts.benchmarks import data


def tables(part: str, tmp_path: Path, *arguments: str) -> list[list[dict[str, float]]]:
    assert main([part, "--repeats", "1", "--json", str(tmp_path / "a.json"), "--threads", "1", *arguments]) == 0
    return list(json.loads((tmp_path / "a.json").read_text())["tables"].values())


def test_evaluation_agrees_with_pycocotools(tmp_path: Path) -> None:
    scale, comparison = tables("eval", tmp_path, "--images", "2", "--detections", "60", "--compared", "4")
    assert scale[0]["detections"] == 120
    assert [row["difference"] for row in comparison] == [0, 0]


def test_the_analysis_of_simulated_errors(tmp_path: Path) -> None:
    ((row,),) = tables("analysis", tmp_path, "--images", "3", "--detections", "50")
    assert row["detections"] == 150
    assert 0 < row["missed"] < row["objects"]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux's files")
def test_data_opens_the_simulated_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "FETCHED", 100)
    steps, opening = tables("data", tmp_path, "--images", "30", "--workers", "1", "--side", "64")
    assert all(row["here, images/s"] > 0 for row in steps)
    assert opening[0]["objects"] == 30 * data.OBJECTS_PER_IMAGE
