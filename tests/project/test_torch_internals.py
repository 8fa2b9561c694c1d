"""Private names that the product imports from torch; a torch that moves one of them fails here, with file and name."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("d3q", "datasets", "engine", "models", "ops", "scripts")


def private_imports(path: Path) -> list[tuple[str, str, str]]:
    """File, module and name of each import from torch in which either part starts with an underscore."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            names = [alias.name for alias in node.names]
            found += [(path.relative_to(ROOT).as_posix(), str(node.module), name) for name in names]
    return [each for each in found if any(part.startswith("_") for part in (*each[1].split("."), each[2]))]


FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
FOUND = [each for path in FILES for each in private_imports(path)]


@pytest.mark.parametrize(("file", "module", "name"), FOUND)
def test_torch_has_what_is_imported_from_its_private_parts(file: str, module: str, name: str) -> None:
    assert hasattr(import_module(module), name), f"{file}: this torch has no {module}.{name}"


def test_the_memory_estimate_is_among_them() -> None:
    names = {name for file, _, name in FOUND if file == "engine/commands/step_memory.py"}
    assert {"FakeTensorMode", "TorchDispatchMode", "_disable_current_modes", "tree_leaves"} <= names
