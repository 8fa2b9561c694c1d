"""Paths of a configuration: expanded where they are opened, kept as written where they are saved."""

import argparse
from pathlib import Path

import pytest

import main
from configs.loader import ConfigError, load_config
from configs.paths import check_paths, escape_path, expand_path, path_argument
from engine.checkpoints.checkpoint import load_checkpoint
from tests.support.tiny_run import write_experiment


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "HOME": "/home/me",
        "DATA": "/data",
        "SUB": "x y",
        "EMPTY": "",
        "TILDE": "~/d",
        "LOOP": "$LOOP",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("UNSET", raising=False)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        *(
            ("data/a #b", "data/a #b"),
            ("~", "/home/me"),
            ("~/a", "/home/me/a"),
            ("$DATA/a", "/data/a"),
            ("a/~/b", "a/~/b"),
        ),
        *(
            ("${DATA}a$SUB/${SUB}", "/dataax y/x y"),
            ("$TILDE/a", "/home/me/d/a"),
            ("$LOOP/a", "$LOOP/a"),
            ("./~a", "~a"),
        ),
        *(
            ("a$", "a$"),
            ("$5", "$5"),
            ("a$$b", "a$b"),
            ("$$DATA", "$DATA"),
            ("$$$DATA", "$/data"),
            ("${}", "${}"),
            ("", "."),
        ),
    ],
)
def test_what_is_expanded(text: str, path: str) -> None:
    assert expand_path(text, "key") == Path(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("$UNSET/a", "key: '$UNSET/a': the environment variable UNSET is not set; export UNSET=..., "),
        ("a/${UNSET}b", "key: 'a/${UNSET}b': the environment variable UNSET is not set"),
        ("$EMPTY/a", "key: '$EMPTY/a': the environment variable EMPTY is empty"),
        ("$DATAS", "key: '$DATAS': the environment variable DATAS is not set"),
        ("~nobody-here/a", "key: '~nobody-here/a': no home folder of ~nobody-here; write ./~nobody-here"),
    ],
)
def test_what_cannot_be_expanded(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        expand_path(text, "key")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("path", ["a/b", "a$DATA/$$b", "~me/x", "/tmp/${X}", "$"])
def test_an_escaped_path_is_itself(path: str) -> None:
    assert expand_path(escape_path(path), "key") == Path(path)


def test_a_path_of_the_command_line_is_taken_as_the_shell_left_it(tmp_path: Path) -> None:
    (tmp_path / "a$b").write_text("")
    assert path_argument("a$b") == Path("a$b")
    assert path_argument("$DATA/x") == Path("/data/x")
    with pytest.raises(argparse.ArgumentTypeError, match="UNSET is not set"):
        path_argument("$UNSET/x")


@pytest.mark.parametrize("option", ["--config", "--resume"])
def test_an_argument_that_cannot_be_expanded_is_a_usage_error(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(["--check", option, "$UNSET/x"])
    assert ended.value.code == 2
    assert f"error: argument {option}: '$UNSET/x': the environment variable UNSET is not set" in capsys.readouterr().err


OPENED = {
    "data.root": "{}",
    "data.train.annotations": "{}/train.json",
    "data.train.images": "{}/train",
    "data.val.annotations": "{}/val.json",
    "data.val.images": "{}/val",
    "runtime.output_dir": "{}/run",
    "init_from": "{}/x.pth",
    "model.backbone.weights": "{}/x.pth",
}


@pytest.mark.parametrize("key", OPENED)
def test_every_path_that_a_run_opens_is_checked_beforehand(
    tmp_path: Path, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_experiment(tmp_path, train=[1], val=[1])
    text = OPENED[key].format("$UNSET")
    arguments = ["--config", str(config), "--set", "runtime.output_dir=run", f"{key}={text}"]
    for mode in ([], ["--check"], ["--check-full"]):
        assert main.main([*arguments, *mode]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"error: {config}: {key}: '{text}': the environment variable UNSET is not set")
        assert printed.out == ""
    assert main.main([*arguments, "--print-config"]) == 0
    assert text in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_only_paths_that_are_opened_are_checked(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, train=[1], val=[1])
    settings = [f"{key}={text.format('$UNSET')}" for key, text in OPENED.items()]
    config = load_config(path, settings)

    def keys(**mode: bool) -> set[str]:
        with pytest.raises(ConfigError) as caught:
            check_paths(config, "x.yaml", **mode)
        return {problem.split(": ")[1] for problem in caught.value.problems}

    data = {key for key in OPENED if key.startswith("data.")}
    assert keys(evaluation=False, resumed=False) == set(OPENED) - {"model.backbone.weights"}
    opened = data | {"runtime.output_dir"}
    assert keys(evaluation=False, resumed=True) == opened
    assert keys(evaluation=True, resumed=True) == opened - {"data.train.annotations", "data.train.images"}


def test_a_run_keeps_its_paths_as_written_and_goes_on_where_they_mean_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    config = write_experiment(here, train=[2, 1], val=[1])
    monkeypatch.setenv("D3Q_DATA", str(here / "data"))
    monkeypatch.setenv("HOME", str(here))
    paths = ["data.root=$D3Q_DATA", "data.train.images=${D3Q_DATA}/train", "data.val.annotations=~/data/val.json"]
    arguments = ["--set", *paths, "runtime.output_dir=~/run #1", "optim.epochs=1", "optim.lr=1e-12"]
    assert main.main(["--config", str(config), *arguments]) == 0
    saved = (here / "run #1" / "config.yaml").read_text()
    last = load_checkpoint(here / "run #1" / "last.pth")
    for text in (saved, last.config):
        for setting in paths:
            assert setting.partition("=")[2] in text
        assert 'output_dir: "~/run #1"' in text
    here.rename(there)
    monkeypatch.setenv("D3Q_DATA", str(there / "data"))
    monkeypatch.setenv("HOME", str(there))
    assert main.main(["--eval", "--resume", str(there / "run #1" / "last.pth")]) == 0
    assert main.main(["--resume", "~/run #1/last.pth", "--set", "optim.epochs=2"]) == 0
    assert load_checkpoint(there / "run #1" / "last.pth").progress.epoch == 2
    start = [*paths, "init_from=${HOME}/run #1/last.pth", "runtime.output_dir=$HOME/second", "optim.epochs=1"]
    assert main.main(["--config", "$HOME/tiny.yaml", "--set", *start]) == 0
    assert (there / "second" / "last.pth").is_file()
    capsys.readouterr()
    monkeypatch.delenv("D3Q_DATA")
    assert main.main(["--resume", "~/run #1/last.pth", "--set", "optim.epochs=3"]) == 2
    assert f"error: {there}/run #1/last.pth (config): data.root: '$D3Q_DATA'" in capsys.readouterr().err


def test_the_name_of_a_config_file_is_no_variable(tmp_path: Path) -> None:
    config = write_experiment(tmp_path, train=[1], val=[1]).rename(tmp_path / "a$b.yaml")
    assert main.main(["--config", str(config), "--set", "optim.epochs=1"]) == 0
    assert (tmp_path / "runs" / "a$b" / "last.pth").is_file()
