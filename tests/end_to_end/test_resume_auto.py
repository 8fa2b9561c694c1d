"""One command that is repeated until the run is done."""

import json
from pathlib import Path

import pytest

import main
from configs.compare import HARMLESS, harmful_differences
from configs.loader import load_config, schema_keys
from configs.schema import Config
from engine.checkpoints.checkpoint import load_checkpoint
from tests.support.hooks import stop_at_step
from tests.support.tiny_run import write_experiment


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    return write_experiment(tmp_path, train=[3, 0, 0, 5, 2], val=[2, 1])


def command(experiment: Path, *settings: str) -> list[str]:
    folder = f"runtime.output_dir={experiment.parent / 'run'}"
    return ["--config", str(experiment), "--resume", "auto", "--set", folder, "optim.epochs=2", *settings]


def test_the_same_command_starts_resumes_and_ends(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 3):  # of all runs together
        stop_at_step(step, monkeypatch)
    codes = [main.main(command(experiment)) for _ in range(4)]
    assert codes == [75, 75, 0, 0]
    assert "already finished: 2 of 2 epochs" in capsys.readouterr().out
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [record["step"] for record in map(json.loads, lines) if record["kind"] == "train"]
    assert steps == list(range(1, 7))
    assert load_checkpoint(tmp_path / "run" / "last.pth").config == (tmp_path / "run" / "config.yaml").read_text()


def test_another_config_is_refused_and_shown(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(command(experiment, "optim.epochs=1")) == 0
    other = command(experiment, "optim.lr=2e-3", "model.d3q=null", "runtime.log_every=7")
    assert main.main(other) == 2
    message = capsys.readouterr().err
    assert "optim.lr: 0.001 in the checkpoint, 0.002 now" in message
    assert "model.d3q.min_queries: 5 in the checkpoint, absent now" in message
    assert "log_every" not in message
    assert "--allow-config-change" in message
    assert main.main([*command(experiment, "optim.lr=2e-3"), "--allow-config-change"]) == 0


def test_usage(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--resume", "auto"]) == 2
    assert "--resume auto needs --config" in capsys.readouterr().err
    assert main.main(["--eval", "--resume", "auto", "--config", str(experiment)]) == 2


def test_harmless_keys_exist_and_do_not_count(experiment: Path) -> None:
    assert set(HARMLESS) <= set(schema_keys(Config))
    config = load_config(experiment)
    assert harmful_differences(load_config(experiment, ["runtime.keep_checkpoints=5"]), config) == []
    for other in ("runtime.seed=5", "data.exif=apply"):
        assert len(harmful_differences(load_config(experiment, [other]), config)) == 1
