"""Who may import whom: three floors, no cycle, no upward arrow, and no third-party package beyond the few named."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"configs", "d3q", "datasets", "engine", "main", "models", "ops", "scripts"}
THIRD_PARTY = {"PIL", "numpy", "pycocotools", "scipy", "tensorboard", "torch", "torchvision", "tqdm", "yaml"}

# What a package may import besides itself; scripts/ and main.py may import everything.
MAY_IMPORT = {
    "configs": set(),
    "d3q": set(),
    "ops": set(),
    "models": {"ops"},
    "datasets": {"configs"},
    "engine": {"configs"},
    "engine/commands": {"configs", "datasets", "models", "ops"},
}
EXCEPTIONS = {
    "configs/describe.py": {"engine"},  # a program: it guards its console
    "models/build.py": {"configs", "d3q", "ops"},
    "ops/build.py": {"engine"},  # a program too
}
# Narrower third-party limits.
MAY_NEED = {"d3q": {"torch"}, "configs": {"yaml"}}
# Beyond both: an optional extra, which its script does without, and the toy run of the chaos experiments.
OPTIONAL = {"scripts/compare_budgets.py": {"matplotlib"}, "scripts/gpu_steps/resume.py": {"tests"}}

FILES = sorted(path for name in OURS for path in (ROOT / name).rglob("*.py"))


def imports(source: str, package: str) -> set[str]:
    """Top-level names of every import of a file, wherever it stands; relative ones are its own package."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(package if node.level else str(node.module).partition(".")[0])
    return found - {package} - set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", [*FILES, ROOT / "main.py"], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_follow_the_table(path: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    package = name.partition("/")[0]
    found = imports(path.read_text(), package)
    folder = MAY_IMPORT.get(path.parent.relative_to(ROOT).as_posix(), MAY_IMPORT.get(package, OURS))
    assert found & OURS <= EXCEPTIONS.get(name, folder)
    assert found - OURS <= MAY_NEED.get(package, THIRD_PARTY) | OPTIONAL.get(name, set())


def test_the_check_itself_sees_every_kind_of_import() -> None:
    source = (
        "import os, a.b\nfrom c.d import e\nfrom . import f\ndef g():\n    import h as i\nif 0:\n    from j import *"
    )
    assert imports(source, "models") == {"a", "c", "h", "j"}
    assert all((ROOT / package / "__init__.py").exists() for package in MAY_IMPORT)
