"""Layers and limits: who may import whom (no cycle, no upward import, few packages), and how long things may be."""

import ast
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"configs", "d3q", "datasets", "engine", "hubconf", "main", "models", "ops", "scripts"}
THIRD_PARTY = {"PIL", "numpy", "pycocotools", "scipy", "tensorboard", "torch", "torchvision", "tqdm", "yaml"}

# What a package may import besides itself: packages, or single modules of them. The longest matching prefix counts.
RECORDS = {"models.structures", "datasets.structures", "datasets.findings"}
MAY_IMPORT = {
    "configs": set(),
    "d3q": set(),
    "ops": set(),
    "models": {"ops"},
    "datasets": set(),
    "engine": {"configs", *RECORDS},
    "engine/commands": {"configs", "datasets", "models", "ops"},
    "main.py": {"configs", "engine", "ops"},
    "hubconf.py": {"engine"},
    "scripts": OURS,
}
EXCEPTIONS = {
    "configs/describe.py": {"engine.console"},  # a program: it guards its console
    "ops/build.py": {"engine.console"},  # a program too
    "models/build.py": {"configs", "d3q", "ops"},
    "datasets/build.py": {"configs"},
    "datasets/checks.py": {"configs"},
    "datasets/density.py": {"configs"},
    "scripts/gpu_steps/resume.py": {*OURS, "tests"},  # runs the toy training of tests/chaos on a GPU
}
MAY_IMPORT |= EXCEPTIONS
# engine/commands is the top of the engine: nothing else in it imports the commands.
ABOVE_ENGINE = "engine.commands"

# Narrower third-party limits.
MAY_NEED = {
    "d3q": {"torch"},
    "configs": {"yaml"},
    "engine/metrics": {"numpy"},
    "engine/analysis": {"numpy"},
    "engine/analysis/report": {"PIL", "numpy"},
}
# Optional extras, which the rest does without.
GEO = ("datasets/images/windowed.py", "engine/prediction/georeference.py", "scripts/converters/geo.py")
PLOTS = tuple(f"scripts/compare_{name}.py" for name in ("budgets", "counts", "scores"))
PLOTS += ("scripts/data_statistics/plot.py",)
OPTIONAL = {name: {"matplotlib"} for name in PLOTS} | {name: {"rasterio"} for name in GEO}

FILES = [*sorted(path for name in OURS for path in (ROOT / name).rglob("*.py")), ROOT / "main.py", ROOT / "hubconf.py"]


def imports(source: str, package: str, *, in_functions: bool = True) -> set[str]:
    """Dotted names of every import of a file: modules where they exist, else what holds the name.

    package        dotted name of the folder that the file is in, for relative imports
    in_functions   false: only what is imported when the file is, neither in functions nor for type checkers
    """
    found = set()
    waiting: list[ast.AST] = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if not in_functions and (isinstance(node, ast.FunctionDef) or for_types_only(node)):
            continue
        waiting += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" if module_file(f"{base}.{alias.name}") else base for alias in node.names}
    return {name for name in found if name.partition(".")[0] not in sys.stdlib_module_names}


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def module_file(name: str) -> Path | None:
    """The file of one of our modules, an __init__.py for a package."""
    place = ROOT / name.replace(".", "/")
    return next((file for file in (place.with_suffix(".py"), place / "__init__.py") if file.is_file()), None)


def imports_of(path: Path, *, in_functions: bool = True) -> set[str]:
    package = path.parent.relative_to(ROOT).as_posix().replace("/", ".")
    return imports(path.read_text(), package, in_functions=in_functions)


def longest_prefix(table: Mapping[str, set[str]], name: str) -> set[str] | None:
    """The entry of a file, or of the deepest folder around it that has one."""
    keys = [key for key in table if name == key or name.startswith(f"{key}/")]
    return table[max(keys, key=len)] if keys else None


def within(name: str, allowed: set[str]) -> bool:
    """Whether a dotted name is one of the allowed modules, or lies in an allowed package."""
    return any(name == each or name.startswith(f"{each}.") for each in allowed)


def forbidden(name: str, found: set[str]) -> set[str]:
    """Those of the imports of the file `name` that the tables do not allow."""
    allowed = longest_prefix(MAY_IMPORT, name) or set()
    own = name.partition("/")[0]
    needed = longest_prefix(MAY_NEED, name) or THIRD_PARTY
    theirs = {each for each in found if each.partition(".")[0] in {*OURS, "tests"} - {own}}
    ours = {each for each in found if each.partition(".")[0] == own}
    upward = {each for each in ours if own == "engine" and within(each, {ABOVE_ENGINE})}
    if name.startswith(ABOVE_ENGINE.replace(".", "/")):
        upward = set()
    others = {each for each in found - theirs - ours if not within(each, needed | OPTIONAL.get(name, set()))}
    return upward | others | {each for each in theirs if not within(each, allowed)}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_follow_the_table(path: Path) -> None:
    assert not forbidden(path.relative_to(ROOT).as_posix(), imports_of(path))


def test_a_config_is_resolved_without_torch() -> None:
    """Nor do the modules that engine/commands/resolve.py imports, packages' __init__.py included."""
    seen: set[str] = set()
    waiting = {"engine.commands.resolve"}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        parents = {name.rsplit(".", depth)[0] for depth in range(1, name.count(".") + 1)}
        file = module_file(name)
        waiting |= ((imports_of(file, in_functions=False) if file else set()) | parents) - seen
    assert {name.partition(".")[0] for name in seen} <= {"configs", "engine", "models", "yaml"}


def test_the_check_itself_sees_every_kind_of_import() -> None:
    source = (
        "import os, a.b\nfrom c.d import e\nfrom . import f\nfrom ..matching import cost\nfrom models import boxes, x\n"
        "def g():\n    import h as i\nif TYPE_CHECKING:\n    from j import *"
    )
    found = {"a.b", "c.d", "models.backbones", "models.matching.cost", "models.boxes", "models", "h", "j"}
    assert imports(source, "models.backbones") == found
    assert imports(source, "models.backbones", in_functions=False) == found - {"h", "j"}


@pytest.mark.parametrize(
    ("name", "imported", "wrong"),
    [
        ("engine/train.py", "datasets.structures", False),
        ("engine/evaluation/report.py", "datasets.findings.Findings", False),
        ("engine/train.py", "datasets.coco", True),
        ("engine/train.py", "models", True),
        ("engine/trainer.py", "engine.commands.setup", True),
        ("engine/commands/train.py", "engine.commands.setup", False),
        ("engine/commands/train.py", "d3q", True),
        ("engine/metrics/matching.py", "torch", True),
        ("engine/analysis/errors.py", "PIL", True),
        ("models/dino.py", "d3q.tiny_box", True),
        ("models/build.py", "d3q.tiny_box", False),
        ("models/matching/cost.py", "configs.schema", True),
        ("datasets/coco.py", "configs.schema", True),
        ("ops/library.py", "engine.console", True),
        ("ops/build.py", "engine.console", False),
        ("ops/build.py", "engine.train", True),
        ("d3q/tiny_box.py", "numpy", True),
        ("scripts/benchmark.py", "pandas", True),
        ("scripts/benchmark.py", "tests.support", True),
    ],
)
def test_the_table_itself(name: str, imported: str, wrong: bool) -> None:
    assert bool(forbidden(name, {imported})) == wrong


# ---- limits: lengths of files and functions, sizes of folders

LINES_OF_A_FILE, LINES_OF_A_FUNCTION, LINES_OF_A_FORWARD, FILES_OF_A_FOLDER = 300, 50, 40, 16
ONE_FILE_ON_PURPOSE = {"configs/schema.py"}


def too_long(name: str, source: str) -> set[str]:
    """What exceeds the limits in a file: its name, or `name:function`."""
    found = {name} if len(source.splitlines()) > LINES_OF_A_FILE else set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            limit = LINES_OF_A_FORWARD if node.name == "forward" else LINES_OF_A_FUNCTION
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            found |= {f"{name}:{node.name}"} if length > limit else set()
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_product_files_and_functions_are_short(path: Path) -> None:
    assert too_long(path.relative_to(ROOT).as_posix(), path.read_text()) <= ONE_FILE_ON_PURPOSE


def test_no_folder_has_too_many_python_files() -> None:
    folders = Counter(path.parent for name in (*OURS, "tests") for path in (ROOT / name).rglob("*.py"))
    files = {str(folder): count - (folder / "__init__.py").exists() for folder, count in folders.items()}
    assert not {folder: count for folder, count in files.items() if count > FILES_OF_A_FOLDER}


def test_the_limits_themselves() -> None:
    body = "    x = 1\n"
    assert too_long("a.py", "x = 1\n" * 300) == set()
    assert too_long("a.py", "x = 1\n" * 301) == {"a.py"}
    assert too_long("a.py", f"def f():\n{body * 49}class C:\n  def forward(self):\n{body * 39}") == set()
    assert too_long("a.py", f"def f():\n{body * 50}") == {"a.py:f"}
    assert too_long("a.py", f"class C:\n  async def forward(self):\n{body * 40}") == {"a.py:forward"}
