"""The reference of every configuration key, from the schema alone: `python -m configs.describe > docs/config.md`."""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from configs.schema import Config
from configs.tree import join, write_value
from engine.console import guard_console

HEADER = """# Configuration keys

Written by `python -m configs.describe > docs/config.md`; edit `configs/schema.py` instead. A key without a default
must be given. A block marked "or null" is absent unless a file gives it. In paths `~`, `$NAME` and `${NAME}`
are expanded where they are opened; `$$` is a dollar sign.
"""


def describe_schema(schema: type = Config) -> str:
    """Markdown: one table per block with key, type, default and meaning."""
    return "\n".join([HEADER, *_blocks(schema, "")])


def field_docs(schema: type) -> dict[str, str]:
    """The docstring under each field of a dataclass, on one line; fields without one are skipped."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(schema))).body[0]
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            docs[field.target.id] = " ".join(str(below.value.value).split())
    return docs


def _blocks(schema: Any, path: str) -> Iterator[str]:
    """The table of a block, then those of the blocks in it."""
    hints = get_type_hints(schema)
    docs = field_docs(schema)
    yield f"## {path or 'Top level'}\n\n{inspect.getdoc(schema)}\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|"
    for field in fields(schema):
        hint = hints[field.name]
        cells = (f"`{field.name}`", _type_name(hint), _default(field.default), docs.get(field.name, ""))
        yield f"| {' | '.join(cells)} |"
    yield ""
    for name, hint in hints.items():
        for option in (hint, *get_args(hint)):
            if is_dataclass(option):
                yield from _blocks(option, join(path, name))


def _type_name(hint: Any) -> str:
    if hint is NoneType:
        return "null"
    if is_dataclass(hint):
        return "block"
    if get_origin(hint) is Literal:
        return ", ".join(f"`{write_value(option)}`" for option in get_args(hint))
    if get_origin(hint) is tuple:
        names = ["..." if option is Ellipsis else _type_name(option) for option in get_args(hint)]
        return f"[{', '.join(names)}]"
    if get_args(hint):
        return " or ".join(_type_name(option) for option in get_args(hint))
    return str(hint.__name__)


def _default(default: Any) -> str:
    if default is MISSING:
        return ""
    return "see below" if is_dataclass(default) else f"`{write_value(default)}`"


if __name__ == "__main__":
    guard_console()
    sys.stdout.write(describe_schema())
