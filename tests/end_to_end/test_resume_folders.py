"""Where a resumed run and an evaluation write: never over what exists."""

import json
import os
import shutil
from pathlib import Path
from types import ModuleType

import pytest

import main
from engine.checkpoints.checkpoint import load_checkpoint, save_checkpoint
from scripts import benchmark, calibrate_queries, compare_budgets
from tests.chaos import experiments as chaos
from tests.support.tiny_run import write_experiment

Contents = dict[str, bytes]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.yaml, data/, run/ at epoch 1 and further/ at epoch 2 of another seed; with paths relative to the folder."""
    folder = tmp_path_factory.mktemp("trained")
    config = write_experiment(folder, train=[2, 1], val=[1])
    text = config.read_text().replace(str(folder / "data"), "data")
    config.write_text(text.replace("every_epochs: 2", "every_epochs: 1"))
    before = Path.cwd()
    os.chdir(folder)
    try:
        start = ["--config", "tiny.yaml", "--set"]
        assert main.main([*start, "runtime.output_dir=run", "optim.epochs=1"]) == 0
        longer = ["optim.epochs=2", "runtime.seed=5", "runtime.keep_checkpoints=4"]
        assert main.main([*start, "runtime.output_dir=further", *longer]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def work(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the working folder."""
    shutil.copytree(trained, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def contents(folder: str | Path) -> Contents:
    found = {str(path): path.read_bytes() for path in sorted(Path(folder).rglob("*")) if path.is_file()}
    return {name: content for name, content in found.items() if not name.endswith("run.lock")}


def resume(path: str | Path, *settings: str, options: tuple[str, ...] = ()) -> int:
    return main.main(["--resume", str(path), *options, *(["--set", *settings] if settings else [])])


def evaluate(path: str | Path, *settings: str) -> int:
    return main.main(["--eval", "--resume", str(path), *(["--set", *settings] if settings else [])])


def place(folder: str) -> tuple[int, str]:
    """Epochs, and the folder that the saved config names."""
    checkpoint = load_checkpoint(Path(folder) / "last.pth")
    assert (Path(folder) / "config.yaml").read_text() == checkpoint.config
    (line,) = (line for line in checkpoint.config.splitlines() if "output_dir: " in line)
    return checkpoint.progress.epoch, line.partition(": ")[2].strip('"')


def steps(folder: str) -> list[int]:
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    return [record["step"] for record in map(json.loads, lines) if record["kind"] == "train"]


# ---- training resumes in the folder that holds the checkpoint


@pytest.mark.parametrize("how", ["copied", "renamed", "below another folder"])
@pytest.mark.parametrize("with_config", [False, True])
def test_a_run_resumes_where_its_folder_is_now(work: Path, how: str, with_config: bool) -> None:
    target = "deep/er/backup" if how == "below another folder" else "backup"
    shutil.copytree("run", target)
    if how == "renamed":
        shutil.rmtree("run")
    before = contents("run")
    config = ("--config", "tiny.yaml") if with_config else ()
    assert resume(f"{target}/last.pth", "optim.epochs=2", options=config) == 0
    assert place(target) == (2, target)
    assert steps(target) == [1, 2]
    assert contents("run") == before
    assert f"resumed from {target}/last.pth, epoch 1, step 1, in {target}" in Path(target, "log.txt").read_text()


def test_the_folder_of_a_config_is_not_that_of_the_checkpoint(work: Path) -> None:
    shutil.copytree("run", "backup")
    text = Path("tiny.yaml").read_text().replace("log_every: 1", "log_every: 1, output_dir: further")
    Path("tiny.yaml").write_text(text)
    before = contents("further")
    assert resume("backup/last.pth", "optim.epochs=2", options=("--config", "tiny.yaml")) == 0
    assert contents("further") == before
    assert place("backup") == (2, "backup")


def test_a_path_as_written_is_kept_while_it_leads_there(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERE", str(work))
    assert main.main(["--config", "tiny.yaml", "--set", "runtime.output_dir=$HERE/own", "optim.epochs=1"]) == 0
    assert resume("own/last.pth", "optim.epochs=2") == 0
    assert place("own") == (2, "$HERE/own")
    monkeypatch.delenv("HERE")
    assert resume("own/last.pth", "optim.epochs=3") == 0
    assert place("own") == (3, "own")


@pytest.mark.parametrize("name", ["last.pth", "saved.pth"])
def test_a_checkpoint_alone_resumes_in_its_folder(work: Path, name: str) -> None:
    Path("alone").mkdir()
    shutil.copy("run/last.pth", f"alone/{name}")
    before = contents("run")
    assert resume(f"alone/{name}", "optim.epochs=2") == 0
    assert contents("run") == before
    assert place("alone") == (2, "alone")
    assert steps("alone") == [2]
    assert Path("alone/best.pth").is_file()  # the best that this folder has seen


def test_a_checkpoint_among_other_things_needs_a_folder(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("downloads").mkdir()
    Path("downloads/holiday.jpg").touch()
    shutil.copy("run/last.pth", "downloads")
    Path("latest.pth").symlink_to("run/last.pth")
    before = contents(".")
    assert resume("downloads/last.pth", "optim.epochs=2") == 2
    message = capsys.readouterr().err
    assert "downloads, where last.pth lies, is no run folder: it holds holiday.jpg; name a folder" in message
    assert resume("latest.pth", "optim.epochs=2") == 2
    assert f"resume from {work / 'run' / 'last.pth'}, which it links to" in capsys.readouterr().err
    assert contents(".") == before
    assert resume("downloads/last.pth", "optim.epochs=2", "runtime.output_dir=new") == 0
    assert place("new") == (2, "new")


# ---- a branch


def test_a_branch_has_records_of_its_own(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    before = contents("run")
    for folder in ("empty", "not/there/yet"):
        assert resume("run/last.pth", "optim.epochs=2", f"runtime.output_dir={folder}") == 0
        assert place(folder) == (2, folder)
        assert steps(folder) == [2]
        assert f"branch of run/last.pth, epoch 1, step 1, in {folder}" in Path(folder, "log.txt").read_text()
        assert Path(folder, "best.pth").is_file()
    assert contents("run") == before
    assert resume("empty/last.pth", "optim.epochs=3") == 0
    assert steps("empty") == [2, 3]


@pytest.mark.parametrize("target", ["further", "backup", "best alone", "records alone", "evaluated", "a config"])
@pytest.mark.parametrize("new_run", [False, True])
def test_a_folder_that_holds_something_is_refused(
    work: Path, target: str, new_run: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {
        "further": None,
        "backup": None,
        "best alone": ["best.pth"],
        "records alone": ["metrics.jsonl", "log.txt"],
        "evaluated": ["status.json", "run.lock", "metrics.jsonl"],
        "a config": ["config.yaml"],
    }[target]
    if target != "further":
        shutil.copytree("run", target)
    for path in [] if kept is None else [*Path(target).iterdir()]:
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = contents(".")
    settings = [f"runtime.output_dir={target}", "optim.epochs=3"]
    if new_run:
        assert main.main(["--config", "tiny.yaml", "--set", *settings]) == 2
    else:
        assert resume("run/last.pth", *settings) == 2
    message = capsys.readouterr().err
    assert f"{target} already holds" in message or f"{target} holds" in message
    assert "choose another runtime.output_dir" in message
    if not new_run:
        assert "run/last.pth is of the run in run" in message
        assert "without --set runtime.output_dir it resumes in run" in message
    assert contents(".") == before


def test_a_run_that_never_saved_a_checkpoint_leaves_its_folder_free(work: Path) -> None:
    arguments = ["--config", "tiny.yaml", "--set", "runtime.output_dir=new", "optim.epochs=1"]
    assert main.main([*arguments, "optim.lr=1e30", "optim.clip_grad_norm=0", "optim.max_skipped_steps=0"]) in (0, 5)
    for path in Path("new").glob("*.pth"):
        path.unlink()
    shutil.rmtree("new/evaluation", ignore_errors=True)
    status = json.loads(Path("new/status.json").read_text())
    Path("new/status.json").write_text(json.dumps(status | {"step": 0}))
    assert main.main(arguments) == 0
    assert steps("new") == [1]


@pytest.mark.parametrize("named", ["./run", "link", "further/../run"])
def test_the_own_folder_may_be_named(work: Path, named: str) -> None:
    Path("link").symlink_to("run", target_is_directory=True)
    assert resume("run/last.pth", "optim.epochs=2", f"runtime.output_dir={named}") == 0
    assert steps("run") == [1, 2]
    assert resume("link/last.pth", "optim.epochs=3", "runtime.output_dir=run") == 0
    assert steps("run") == [1, 2, 3]


def test_a_finished_run_keeps_its_place_in_the_status(work: Path) -> None:
    assert resume("further/last.pth") == 0
    status = json.loads(Path("further/status.json").read_text())
    assert (status["state"], status["epoch"], status["step"]) == ("finished", 2, 2)
    assert resume("further/last.pth", "runtime.output_dir=branch") == 0  # nothing to train: nothing is saved
    assert json.loads(Path("branch/status.json").read_text())["step"] == 0
    assert "--resume branch" not in Path("branch/log.txt").read_text()
    assert resume("further/last.pth", "runtime.output_dir=branch", "optim.epochs=3") == 0
    assert place("branch") == (3, "branch")


# ---- older states of a folder


def test_an_older_state_does_not_replace_a_further_one(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("run/last.pth", "further/older.pth")
    before = contents(".")
    for name in ("last.2.pth", "older.pth"):
        assert resume(f"further/{name}", "optim.epochs=3") == 2
        message = capsys.readouterr().err
        assert f"further/{name} (epoch 1, step 1) is not the newest state" in message
        assert "would overwrite further/last.pth (epoch 2, step 2): resume from further/last.pth" in message
    assert contents(".") == before
    assert resume("further/last.2.pth", "optim.epochs=2", "runtime.output_dir=branch") == 0
    assert steps("branch") == [2]


def test_the_same_state_under_another_name_resumes(work: Path) -> None:
    shutil.copy("run/last.pth", "run/kept.pth")
    assert resume("run/kept.pth", "optim.epochs=2") == 0
    assert steps("run") == [1, 2]


def test_another_run_of_the_same_step_is_another_state(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = load_checkpoint(Path("run/last.pth"))
    checkpoint.model["decoder.norm.weight"].add_(1)
    save_checkpoint(Path("run/other.pth"), checkpoint)
    assert resume("run/other.pth", "optim.epochs=2") == 2
    assert "would overwrite run/last.pth" in capsys.readouterr().err


def test_a_damaged_checkpoint_gives_way_to_the_one_before(work: Path) -> None:
    content = bytearray(Path("further/last.pth").read_bytes())
    content[len(content) // 2] ^= 1
    Path("further/last.pth").write_bytes(content)
    assert resume("further/last.1.pth", "optim.epochs=2") == 0
    assert steps("further") == [1, 2]
    Path("further/last.pth").write_bytes(content)
    assert resume("further/last.pth", "optim.epochs=2") == 0
    assert steps("further") == [1, 2]


# ---- copies by links


@pytest.mark.parametrize("link", [os.link, os.symlink], ids=["hard links", "symbolic links"])
def test_a_copy_by_links_leaves_the_original_as_it_was(work: Path, link: object) -> None:
    def linked(source: str, target: str) -> None:
        link(os.path.abspath(source), target)  # type: ignore[operator]

    shutil.copytree("run", "backup", copy_function=linked)
    before = contents("run")
    assert resume("backup/last.pth", "optim.epochs=3") == 0
    assert main.main(["--check", "--resume", "backup/last.pth"]) == 0
    assert steps("backup") == [1, 2, 3]
    assert contents("run") == before
    assert place("backup") == (3, "backup")
    assert not any(path.is_symlink() for path in Path("backup").rglob("*") if path.suffix not in (".lock", ".pth"))


# ---- the check


def test_the_check_refuses_what_the_run_would(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--check", "--resume", "run/last.pth", "--set", "runtime.output_dir=further"]) == 2
    assert "further already holds a run" in capsys.readouterr().out
    shutil.copytree("run", "backup")
    assert main.main(["--check", "--resume", "backup/last.pth"]) == 0
    assert "in place of an earlier check" not in capsys.readouterr().out
    assert main.main(["--check", "--resume", "backup/last.pth"]) == 0
    assert "backup/check.jsonl lists everything, in place of an earlier check" in capsys.readouterr().out


# ---- evaluation


def test_an_evaluation_goes_beside_the_checkpoint_of_a_run_folder(work: Path) -> None:
    shutil.copytree("run", "backup")
    before = contents("run")
    for number in ("", "-2", "-3"):
        earlier = contents("backup")
        assert evaluate("backup/best.pth") == 0
        assert Path(f"backup/evaluation_best{number}/evaluation.json").is_file()
        assert earlier.items() <= contents("backup").items()
    assert contents("run") == before
    assert not Path("runs").exists()


def test_an_evaluation_of_a_checkpoint_alone_goes_to_runs(work: Path) -> None:
    Path("alone").mkdir()
    shutil.copy("run/best.pth", "alone")
    shutil.copy("further/best.pth", "best.pth")
    assert evaluate("alone/best.pth") == 0
    first = contents("runs/eval_best")
    assert evaluate("best.pth") == 0
    assert contents("runs/eval_best") == first
    assert Path("runs/eval_best-2/evaluation.json").is_file()
    assert [path.name for path in Path("alone").iterdir()] == ["best.pth"]


def test_an_evaluation_goes_where_it_is_told(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents("run")
    assert evaluate("run/best.pth", "runtime.output_dir=results/a") == 0
    assert Path("results/a/evaluation.json").is_file()
    assert contents("run") == before
    everything = contents(".")
    for taken in ("results/a", "run", "further", "tiny.yaml"):
        assert evaluate("run/best.pth", f"runtime.output_dir={taken}") == 2
        assert f"{taken}: no folder for results (it is not empty" in capsys.readouterr().err
    assert contents(".") == everything
    config = ["--config", "tiny.yaml", "--eval", "--resume", "run/best.pth"]
    text = Path("tiny.yaml").read_text().replace("log_every: 1", "log_every: 1, output_dir: further")
    Path("tiny.yaml").write_text(text)
    assert main.main(config) == 0  # the file's folder is that of its training
    assert Path("run/evaluation_best/evaluation.json").is_file()


# ---- other writers


def test_a_fragment_of_query_counts_stays(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--resume", "run/best.pth", "--coverage", "0.5"]
    assert calibrate_queries.main(arguments) == 0
    first = contents("run")
    assert calibrate_queries.main(arguments) == 0
    assert "wrote run/calibrated_queries-2.yaml" in capsys.readouterr().out
    assert first.items() <= contents("run").items()
    with pytest.raises(SystemExit, match="2"):
        calibrate_queries.main([*arguments, "--out", "run/calibrated_queries.yaml"])
    assert "run/calibrated_queries.yaml exists; remove it or choose another name" in capsys.readouterr().err


@pytest.mark.parametrize(("script", "part"), [(benchmark, "ops"), (chaos, "kill")])
def test_figures_of_an_earlier_day_stay(
    script: ModuleType, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "figures.json").touch()
    with pytest.raises(SystemExit, match="2"):
        script.parse([part, "--json", str(tmp_path / "figures.json")])
    assert "figures.json exists; remove it or choose another name" in capsys.readouterr().err


def test_tables_of_something_else_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "table.md").write_text("mine")
    assert compare_budgets.main(["--out", str(tmp_path), "--report-only"]) == 2
    assert f"{tmp_path / 'table.md'}: not of these trainings" in capsys.readouterr().err
    assert (tmp_path / "table.md").read_text() == "mine"
