"""The measuring scripts, on runs so small that they take seconds."""

import json
import shutil
from pathlib import Path

import pytest

import main
from scripts import compare_budgets, compare_counts
from scripts.benchmarks import departures
from scripts.support import comparison
from tests.support.tiny_run import write_experiment


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, and one epoch of each budget under the folder names of the comparison."""
    folder = tmp_path_factory.mktemp("budgets")
    config = write_experiment(folder, train=[3, 0, 5, 2], val=[4, 0, 12, 2])
    for name, overrides in compare_budgets.BUDGETS.items():
        output = folder / "runs" / f"{comparison.slug(name)}_seed3"
        settings = [f"runtime.output_dir={output}", "optim.epochs=1"]
        settings += ["model.num_queries=10" if "=100" in text else text for text in overrides]
        assert main.main(["--config", str(config), "--set", *settings]) == 0
    return folder


def test_comparison_of_finished_runs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "runs"
    arguments = ["--out", str(out), "--seeds", "3", "--report-only"]
    assert compare_budgets.main(arguments) == 0
    results = json.loads((out / "results.json").read_text())
    assert list(results) == list(compare_budgets.BUDGETS)
    queries = {name: of_seed["3"]["all"]["mean_queries"] for name, of_seed in results.items()}
    assert queries["fixed 100"] == 10  # the tiny run's
    assert queries["fixed 300"] == 150  # all the tokens that there are
    assert 5 <= queries["D3Q"] < 150
    assert results["D3Q"]["3"]["11-50"]["images"] == 1
    assert all(of_seed["3"]["all"]["milliseconds"] > 0 for of_seed in results.values())
    rows = (out / "table.md").read_text().splitlines()
    assert len(rows) == 2 + len(compare_budgets.SHOWN) * len(results)
    assert "| all | 4 | fixed 100 |" in rows[2]
    assert rows[-1] == "| 101-500 | 0 | D3Q | - | - | - | - |"
    assert "| 11-50 | 1 | D3Q |" in capsys.readouterr().out
    kept = (out / "measured_seed3.json").read_text()
    assert compare_budgets.main(arguments) == 0
    assert (out / "measured_seed3.json").read_text() == kept  # times included: not measured again


def test_comparison_without_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_budgets.main(["--out", str(tmp_path), "--report-only"]) == 1
    assert "run without --report-only" in capsys.readouterr().err


def test_comparison_of_count_losses(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, out = folder / "tiny.yaml", tmp_path / "counts"
    trained = folder / "runs" / "d3q_seed3" / "best.pth"
    for name in compare_counts.LOSSES:  # the same detector twice
        run = out / f"{comparison.slug(name)}_seed3"
        run.mkdir(parents=True)
        shutil.copy(trained, run)
    arguments = ["--config", str(config), "--out", str(out), "--seeds", "3", "--report-only"]
    assert compare_counts.main(arguments) == 0
    results = json.loads((out / "results.json").read_text())
    own, equal = (results[key]["published"]["3"]["all"] for key in ("own", "equal_queries"))
    timeless = [{key: value for key, value in found.items() if key != "milliseconds"} for found in (own, equal)]
    assert timeless[0] == timeless[1]
    assert own["count_error"] >= abs(own["count_bias"]) > 0
    rows = (out / "table.md").read_text().splitlines()
    assert sum(row.startswith("| all | 4 | published |") for row in rows) == 2
    assert sum(row.startswith("| 11-50 | 1 |") for row in rows) == len(compare_counts.LOSSES)
    assert not any(row.startswith("| 101-500") for row in rows)
    capsys.readouterr()
    assert compare_counts.main([*arguments, "--set", "model.d3q=null"]) == 2
    assert "model.d3q is null" in capsys.readouterr().err


def test_a_cell_has_the_mean_and_the_range_of_the_seeds() -> None:
    assert comparison.cell([]) == "-"
    assert comparison.cell([1.0]) == "1.0"
    assert comparison.cell([1.0, 3.0, 5.0]) == "3.0 (1.0 to 5.0)"


def test_departures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert departures.main(["--resume", str(folder / "runs" / "d3q_seed3" / "best.pth")]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines if line.startswith("|")}
    assert float(rows["published"][1]) > 0
    assert float(rows["log_size_form: logsigmoid"][2].removesuffix(" %")) == 0
    assert rows["density_merge: sum"][1] != rows["published"][1]
    crowded = next(line for line in lines if line.startswith("| 3000 | at random"))
    maximum, total = (float(cell.split()[0]) for cell in crowded.split(" | ")[2:4])
    assert maximum < 95
    assert total == pytest.approx(100, abs=0.01)
    unpadded = [line.split(" | ")[2:] for line in lines if line.startswith("| x 1 |")]
    assert unpadded[0] == unpadded[1]  # without padding it does not matter whether that counts


def test_departures_of_a_baseline(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert departures.main(["--resume", str(folder / "runs" / "fixed_100_seed3" / "best.pth")]) == 2
    assert "not a DINO + D3Q" in capsys.readouterr().err
