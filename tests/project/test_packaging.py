"""The wheel holds the method alone: one that installed `datasets` or `models` would shadow other people's packages."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"
USE = "import d3q, torch; print(d3q.__file__); d3q.LogSizeL1().aligned(torch.ones(2, 4), torch.ones(2, 4))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built offline in a copy, so that no build folder is left in the tree."""
    copy = tmp_path_factory.mktemp("build") / "source"
    unwanted = (".*", "runs", "data", "weights", "build", "dist", "tests", "__pycache__", "*.egg-info", "*.so")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*unwanted))
    done = subprocess.run([sys.executable, "-c", BUILD, "."], cwd=copy, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return copy / done.stdout.splitlines()[-1]


def test_the_wheel_holds_d3q_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    metadata = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"d3q", metadata}
    modules = {f"d3q/{path.name}" for path in (ROOT / "d3q").glob("*.py")}
    assert modules <= set(names)
    assert {f"{metadata}/licenses/LICENSE", f"{metadata}/licenses/NOTICE"} <= set(names)


def test_the_method_works_without_the_rest_of_the_repository(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", USE], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == tmp_path / "d3q"
