"""The README's commands run, and files, folders and headings that the documents name exist."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from configs.loader import load_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


AITOD = (ROOT / "docs" / "aitod.md").read_text(encoding="utf-8")


def commands(text: str = README) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", text.replace("\\\n", " "), flags=re.DOTALL)
    lines = [line.split(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def test_there_are_commands() -> None:
    assert len(commands()) >= 8


@pytest.mark.parametrize("command", [*commands(), *commands(AITOD)])
def test_files_of_a_command_exist(command: str) -> None:
    made_by_the_user = ("runs/", "data/", ".venv/")
    for word in shlex.split(command):
        if re.search(r"\.(py|sh|yaml)$", word) and not word.startswith(made_by_the_user):
            assert (ROOT / word).is_file(), word


@pytest.mark.parametrize("command", [command for command in commands() if "--print-config" in command])
def test_cheap_commands_run(command: str) -> None:
    words = shlex.split(command)
    assert words[0] == "python"
    done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "detector: dino" in done.stdout


@pytest.mark.parametrize("command", [command for command in commands(AITOD) if ".py " in command])
def test_commands_for_aitod_have_arguments_and_settings_that_exist(command: str) -> None:
    words = shlex.split(command)
    place = next(i for i, word in enumerate(words) if word.endswith(".py"))
    module = importlib.import_module(words[place].removesuffix(".py").replace("/", "."))
    parse = module.parse if hasattr(module, "parse") else module.parse_arguments
    options = parse(words[place + 1 :])
    if getattr(options, "config", None) is not None:
        load_config(ROOT / options.config, options.set)


DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
FOLDERS = "configs|d3q|datasets|docs|engine|models|ops|scripts|tests"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_linked_files_and_headings_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]+)#?([^)]*)\)", text):
        target = document.parent / link
        assert target.exists(), link
        headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_files_named_in_prose_exist(document: Path) -> None:
    named = re.findall(rf"`((?:{FOLDERS})/[a-z0-9_./-]*)`", document.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_shipped_experiment_is_listed() -> None:
    for path in (ROOT / "configs").glob("*.yaml"):
        assert path.name in README
