"""Usage errors, mistakes in a config and --print-config must not import torch, which takes seconds."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.commands.exit_codes import EARLY_ERRORS, expected_errors
from tests.support.tiny_run import write_experiment

ROOT = Path(__file__).parents[2]
SCENES = ["--config", "configs/dino_d3q_scenes.yaml"]
HEAVY = ("torch", "torchvision", "scipy", "pycocotools")
PROGRAM = """
import runpy, sys
sys.argv = sys.argv[1:]
code = 0
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    code = end.code
print("imported:", *sorted({name.partition(".")[0] for name in sys.modules} & set(HEAVY)))
sys.exit(code)
"""


def started(*command: str) -> tuple[int, str, list[str]]:
    """Exit code, all that it said, and the heavy packages that it imported."""
    program = PROGRAM.replace("HEAVY", repr(HEAVY))
    done = subprocess.run(
        [sys.executable, "-c", program, *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    said, _, imported = done.stdout.rpartition("imported:")
    return done.returncode, said + done.stderr, imported.split()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "--allow-config-change"),
        (["--nonsense"], 2, "unrecognized arguments: --nonsense"),
        (["--eval"], 2, "error: --eval needs --resume"),
        ([*SCENES, "--set", "optim.lrr=1"], 2, "did you mean 'lr'"),
        (["--config", "configs/none.yaml"], 2, "configs/none.yaml"),
        (
            [*SCENES, "--set", "model.backbone.out_strides=[4, 5]"],
            2,
            "model.backbone.out_strides: efficientnet_lite0 has",
        ),
        ([*SCENES, "--set", "data.root=$NO_SUCH_VARIABLE"], 2, "NO_SUCH_VARIABLE is not set"),
        ([*SCENES, "--print-config"], 0, "mean: [0.498"),
        ([*SCENES, "--print-config", "--resume", "auto", "--set", "runtime.output_dir=runs/none"], 0, "runs/none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_main_answers_without_torch(arguments: list[str], code: int, said: str) -> None:
    found, text, imported = started("main.py", *arguments)
    assert (found, imported) == (code, [])
    assert said in text


WITH_TORCH = ("prepare",)
"""Imports it before it reads its arguments"""
IMPORTING = """
import runpy, sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
for path in sorted(Path("scripts").glob("*.py")):
    if path.stem in WITH_TORCH:
        continue
    sys.argv = [str(path), "--help"]
    said = StringIO()
    try:
        with redirect_stdout(said):
            runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        heavy = sorted({name.partition(".")[0] for name in sys.modules} & set(HEAVY))
        print(path.name, end.code, "usage:" in said.getvalue(), *heavy)
"""


def test_help_of_every_script_imports_no_torch() -> None:
    """One after the other in one process: the first line with a package names the script that imports it."""
    program = IMPORTING.replace("HEAVY", repr(HEAVY)).replace("WITH_TORCH", repr(WITH_TORCH))
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    names = sorted(path.name for path in (ROOT / "scripts").glob("*.py") if path.stem not in WITH_TORCH)
    assert done.stdout.splitlines() == [f"{name} 0 True" for name in names], done.stderr


def test_statistics_of_a_data_set_need_no_torch(tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, train=[1], val=[2])
    code, text, imported = started("scripts/dataset_stats.py", "--config", str(experiment))
    assert (code, imported) == (0, [])
    assert "to take the suggestion" in text


def test_the_check_itself_sees_torch() -> None:
    code, text, imported = started("main.py", "--eval", "--resume", "none.pth")
    assert code == 4
    assert "none.pth: no such checkpoint" in text
    assert "torch" in imported


def test_early_errors_are_among_all() -> None:
    assert EARLY_ERRORS.items() <= expected_errors().items()
    assert {2, 3, 4, 5, 6, 75} <= set(expected_errors().values())
