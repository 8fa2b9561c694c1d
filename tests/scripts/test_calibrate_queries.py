"""scripts/calibrate_queries.py on a tiny trained run."""

import json
import math
import shlex
from pathlib import Path

import pytest

import main
from configs.loader import load_config
from engine.evaluation.by_count import BinResult
from engine.metrics.counting import COUNT_BINS
from scripts import calibrate_queries
from tests.support.tiny_run import write_experiment

Results = dict[str, dict[str, BinResult]]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and its experiment, whose density map starts high enough for more queries than the floor."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_experiment(folder, train=[12, 9, 15, 14], val=[4, 0, 11, 12, 13, 14, 2, 16])
    settings = [f"runtime.output_dir={folder / 'run'}", "model.d3q.initial_density=0.08", "optim.epochs=1"]
    assert main.main(["--config", str(config), "--set", *settings]) == 0
    return config


def checkpoint(experiment: Path) -> Path:
    return experiment.parent / "run" / "last.pth"


def calibrate(experiment: Path, *arguments: str) -> Results:
    return calibrate_queries.calibrate_queries(
        calibrate_queries.parse(["--resume", str(checkpoint(experiment)), *arguments])
    )


def counts_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "evaluation.json").read_text())["counts"]


def detection_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "evaluation.json").read_text())["detection"]


def test_fragment_and_printed_line_give_the_printed_numbers(
    experiment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = calibrate(experiment, "--coverage", "0.85", "--min-queries", "3")
    printed = capsys.readouterr().out
    fitted, own = results["calibrated"], results["checkpoint"]
    assert fitted["all"].coverage >= 0.85
    assert fitted["all"].mean_queries != own["all"].mean_queries

    evaluation = checkpoint(experiment).parent / "evaluation_last"
    assert main.main(["--eval", "--resume", str(checkpoint(experiment))]) == 0
    compare(own, evaluation)
    command = shlex.split(printed.splitlines()[-1])
    assert command[:2] == ["python", "main.py"]
    assert main.main(command[2:]) == 0
    compare(fitted, evaluation.with_name("evaluation_last-2"))
    assert f"{fitted['all'].mean_queries:.1f}" in printed

    fragment = checkpoint(experiment).parent / "calibrated_queries.yaml"
    including = experiment.parent / "including.yaml"
    text = experiment.read_text()
    block = "  d3q: {queries_per_object: 3.0, min_queries: 5, initial_density: 0.02}\n"
    assert block in text
    including.write_text("include: [run/calibrated_queries.yaml]\n" + text.replace(block, ""))
    assert main.main(["--eval", "--resume", str(checkpoint(experiment)), "--config", str(including)]) == 0
    compare(fitted, evaluation.with_name("evaluation_last-3"))
    d3q = load_config(including).model.d3q
    assert d3q is not None
    assert d3q.min_queries == 3
    assert f"model.d3q.queries_per_object={d3q.queries_per_object}" in command
    assert fragment.read_text().startswith("# Fitted by scripts/calibrate_queries.py")


def compare(results: dict[str, BinResult], folder: Path) -> None:
    counts, detection = counts_of(folder), detection_of(folder)
    assert (results["all"].coverage, results["all"].mean_queries) == (counts["coverage"], counts["mean_queries"])
    assert results["all"].average_precision == detection["mAP"]
    assert results["all"].average_recall == detection["AR@1500"]
    for name in COUNT_BINS:
        assert results[name].images == counts[f"images_{name}"]
        if results[name].images:
            expected = (counts[f"coverage_{name}"], counts[f"mean_queries_{name}"])
            assert (results[name].coverage, results[name].mean_queries) == expected


def test_oracle_count_spends_what_the_true_counts_ask_for(experiment: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "budget.yaml"
    results = calibrate(experiment, "--coverage", "1", "--min-queries", "6", "--out", str(out))
    t = float(out.read_text().split("queries_per_object: ")[1].split("\n")[0])
    expected = [min(max(math.ceil(count * t), 6), 30) for count in (4, 0, 11, 12, 13, 14, 2, 16)]
    assert results["oracle count"]["all"].mean_queries == pytest.approx(sum(expected) / len(expected))
    assert results["oracle count"]["all"].coverage == 1.0
    assert results["oracle count"]["0"].mean_queries == 6


def test_the_floor_is_fitted_too(experiment: Path, tmp_path: Path) -> None:
    given, both = tmp_path / "given.yaml", tmp_path / "both.yaml"
    least = calibrate(experiment, "--coverage", "1", "--min-queries", "fit", "--out", str(both))["calibrated"]["all"]
    more = calibrate(experiment, "--coverage", "1", "--out", str(given))["calibrated"]["all"]
    assert least.coverage == more.coverage == 1.0
    assert least.mean_queries <= more.mean_queries
    assert int(both.read_text().split("min_queries: ")[1]) >= 1


def test_what_limits_the_fit_is_said(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crowded = write_experiment(tmp_path, train=[1], val=[2, 2, 2, 31]).parent / "data"
    settings = ["--coverage", "0.75", "--out", str(tmp_path / "budget.yaml"), "--set", f"data.root={crowded}"]
    assert calibrate(experiment, *settings)["oracle count"]["all"].coverage == 0.75
    printed = capsys.readouterr().out
    assert "queries_per_object 1 is the least that is tried" in printed
    assert "the ceiling of 30 queries, which no budget covers: 1" in printed
    assert f"--set data.root={crowded} model.d3q.queries_per_object=1.0 model.d3q.min_queries=5" in printed


def test_unreachable_coverage(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blind = [f"runtime.output_dir={tmp_path}", "model.d3q.initial_density=1e-4", "optim.lr=1e-12", "optim.epochs=1"]
    assert main.main(["--config", str(experiment), "--set", *blind]) == 0
    out = tmp_path / "calibrated_queries.yaml"
    assert calibrate_queries.main(["--resume", str(tmp_path / "last.pth"), "--coverage", "1"]) == 7
    message = capsys.readouterr().err
    assert message.startswith("error: coverage 1 cannot be reached; the best is ")
    assert "an estimate of 0" in message
    assert "min_queries 16" in message
    assert not out.exists()


def test_fewer_tokens_than_objects(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "budget.yaml"
    small = ["--coverage", "1", "--min-queries", "30", "--set", "data.image_size=[16, 16]", "model.neck.num_levels=2"]
    data = write_experiment(tmp_path / "crowd", train=[1], val=[25]).parent / "data"
    assert (
        calibrate_queries.main(
            ["--resume", str(checkpoint(experiment)), "--out", str(out), *small, f"data.root={data}"]
        )
        == 7
    )
    assert "fewer tokens" in capsys.readouterr().err
    assert not out.exists()


def test_usage(experiment: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resume = ["--resume", str(checkpoint(experiment))]
    assert calibrate_queries.main([*resume, "--set", "model.d3q=null"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {checkpoint(experiment)}: model.d3q is null")
    assert calibrate_queries.main([*resume, "--min-queries", "31"]) == 2
    assert "the ceiling of 30 queries" in capsys.readouterr().err
    assert calibrate_queries.main([*resume, "--min-queries", "21", "--set", "model.d3q.max_queries=20"]) == 2
    assert "the ceiling of 20 queries" in capsys.readouterr().err
    assert calibrate_queries.main([*resume, "--set", "data.root=nowhere"]) == 3
    assert calibrate_queries.main(["--resume", str(tmp_path / "missing.pth")]) == 4
    with pytest.raises(SystemExit) as caught:
        calibrate_queries.main([*resume, "--coverage", "1.2"])
    assert caught.value.code == 2
