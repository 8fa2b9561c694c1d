"""One reading of an experiment gives the config of a new run, of a resumed one and of an evaluation."""

from dataclasses import FrozenInstanceError
from pathlib import Path
from types import SimpleNamespace

import pytest

import main
from configs.loader import dump_config
from configs.schema import InvalidValueError
from engine.checkpoints import run_folder
from engine.checkpoints.run_folder import Resumption
from engine.commands.resolve import read_checkpoint, read_file
from engine.commands.setup import resolve_from_data
from tests.support.tiny_run import write_experiment


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    return write_experiment(tmp_path, train=[3, 0], val=[2])


@pytest.mark.parametrize(
    ("written", "override", "new", "resumed", "evaluated"),
    [
        (None, None, "runs/tiny", "HERE", None),
        ("runs/x", None, "runs/x", "HERE", None),
        ("HERE/../kept", None, "HERE/../kept", "HERE/../kept", None),
        ("runs/x", "runs/y", "runs/y", "runs/y", "runs/y"),
        ("runs/x", "null", "runs/tiny", "HERE", None),
        ("$NO_SUCH_VARIABLE/x", None, "$NO_SUCH_VARIABLE/x", "HERE", None),
    ],
)
def test_who_uses_an_experiment_decides_on_the_run_folder(
    experiment: Path,
    tmp_path: Path,
    written: str | None,
    override: str | None,
    new: str,
    resumed: str,
    evaluated: str | None,
) -> None:
    here = tmp_path / "kept"
    here.mkdir()
    text = experiment.read_text()
    if written is not None:
        text = text.replace("runtime: {", f"runtime: {{output_dir: '{written.replace('HERE', str(here))}', ")
        assert "output_dir" in text
        experiment.write_text(text)
    overrides = [] if override is None else [f"runtime.output_dir={override}"]
    for found in (read_file(experiment, overrides), read_checkpoint(tmp_path / "tiny.pth", text, overrides)):
        configs = found.config, found.resumed(here / "last.pth"), found.evaluated()
        folders = [config.runtime.output_dir for config in configs]
        expected = [None if each is None else each.replace("HERE", str(here)) for each in (new, resumed, evaluated)]
        assert folders == expected
        assert all(config.data.mean is not None for config in configs)


def test_resume_auto_reads_the_config_once(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read: list[Path] = []

    def counted(file: Path, overrides: list[str]) -> object:
        read.append(file)
        return read_file(file, overrides)

    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "last.pth").touch()
    settings = ["--set", f"runtime.output_dir={folder}", "model.d3q.initial_density=null"]
    text = dump_config(read_file(experiment, [settings[1], "model.d3q.initial_density=0.25"]).config)
    start = Resumption(SimpleNamespace(config=text), folder / "last.pth")  # type: ignore[arg-type]
    monkeypatch.setattr(run_folder, "load_newest", lambda path: start)
    monkeypatch.setattr(main, "read_file", counted)
    assert main.main(["--config", str(experiment), "--resume", "auto", *settings, "--print-config"]) == 0
    assert read == [experiment]
    assert capsys.readouterr().out == text  # with what the earlier run resolved from its data


def test_what_follows_from_data_is_resolved_once_and_then_frozen(experiment: Path) -> None:
    config = read_file(experiment, ["model.d3q.initial_density=0.25"]).config
    assert resolve_from_data(config, None, None) is config  # type: ignore[arg-type]
    fresh = read_file(experiment, ["model.d3q.initial_density=null"]).config
    start = Resumption(SimpleNamespace(), Path("last.pth"))  # type: ignore[arg-type]
    assert resolve_from_data(fresh, start, None) is fresh  # type: ignore[arg-type]
    with pytest.raises(FrozenInstanceError):
        fresh.model.d3q.initial_density = 1.0  # type: ignore[misc, union-attr]


def test_a_config_takes_the_number_of_classes_from_the_checkpoint(experiment: Path, tmp_path: Path) -> None:
    text, path = dump_config(read_file(experiment, []).config), tmp_path / "last.pth"
    overrides = ["model.num_classes=null"]
    ours = read_file(experiment, overrides).config
    assert ours.model.num_classes is None
    with pytest.raises(InvalidValueError, match=r"model\.num_classes: null"):
        _ = ours.model.class_count
    assert read_checkpoint(path, text, overrides).config.model.num_classes == 2
    evaluated = main.parse_arguments(["--eval", "--config", str(experiment), "--resume", str(path)])
    assert main.resolve_start(evaluated, read_file(experiment, overrides), path, text).model.num_classes == 2
    resumed = main.parse_arguments(["--config", str(experiment), "--resume", str(path)])
    assert main.resolve_start(resumed, read_file(experiment, overrides), path, text).model.num_classes == 2
