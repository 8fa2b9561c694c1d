"""Load YAML files as frozen dataclasses: strict, with file, line and path in every error.

A file is read as a tree (`configs/tree.py`), merged with its includes and the overrides, and turned into the
dataclasses of `configs/schema.py`. The types of the dataclasses decide everything; no key is named here.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from configs.schema import Config, InvalidValueError
from configs.tree import (
    MAX_PROBLEMS,
    ConfigError,
    Tree,
    deepest,
    did_you_mean,
    join,
    merge,
    no_such_file,
    problem,
    quote,
    read_override_text,
    read_text,
    read_tree,
    replace_at,
    show,
    write_value,
)

__all__ = ["ConfigError", "Rules", "dump_config", "load_config", "parse_as", "parse_config", "schema_keys"]

T = TypeVar("T")

Rules = Mapping[type, Callable[[Any], None]]

INVALID: Any = object()
SCALARS: dict[Any, str] = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def load_config(path: Path, overrides: Sequence[str] = (), rules: Rules | None = None) -> Config:
    """The experiment in a file, with its includes and then the overrides (`a.b=c`) applied.

    rules   further checks of blocks, by their class: they raise InvalidValueError as a block's own __post_init__ does

    Raises ConfigError.
    """
    tree = read_tree(read_text(path), str(path))
    return _build(Config, _apply(Config, _include(tree, path.parent), overrides), rules)


def parse_config(text: str, source: str, overrides: Sequence[str] = (), rules: Rules | None = None) -> Config:
    """A resolved experiment, such as the one in a checkpoint; `source` names it in errors. Includes are not allowed.

    Raises ConfigError.
    """
    return parse_as(Config, text, source, overrides, rules)


def parse_as(schema: type[T], text: str, source: str, overrides: Sequence[str] = (), rules: Rules | None = None) -> T:
    """Text -> any dataclass of the field types that `_Builder.value` lists. Raises ConfigError."""
    return _build(schema, _apply(schema, _include(read_tree(text, source), None), overrides), rules)


def dump_config(config: object) -> str:
    """YAML text that `parse_config` turns into an equal config; keys in the order of the schema."""
    return "".join(f"{line}\n" for line in _dump_block(config, ""))


def schema_keys(schema: Any, path: str = "") -> Iterator[str]:
    """Dotted paths of every key of a dataclass, in order, a block before its keys."""
    for name, hint in get_type_hints(schema).items():
        yield join(path, name)
        for option in (hint, *get_args(hint)):
            if is_dataclass(option):
                yield from schema_keys(option, join(path, name))


# ---- includes and overrides


def _include(own: Tree, folder: Path | None) -> Tree:
    """The tree over its fragments; `folder` is None where including is not allowed."""
    _require_block(own)
    include = own.content.pop("include", None)
    tree = Tree({}, own.origin)
    if include is not None:
        for fragment in _read_fragments(include, folder):
            tree = merge(tree, fragment)
    return merge(tree, own)


def _read_fragments(include: Tree, folder: Path | None) -> Iterator[Tree]:
    if folder is None:
        reason = "not allowed in a resolved configuration"
        raise ConfigError([problem(include.origin, "include", reason)])
    names = include.content
    if not isinstance(names, list) or not all(isinstance(name.content, str) for name in names):
        reason = "expected a list of files, such as [fragments/aitodv2.yaml]"
        raise ConfigError([problem(include.origin, "include", reason)])
    for name in names:
        path = Path(os.path.normpath(folder / name.content))
        if not path.exists():
            raise ConfigError([problem(name.origin, "include", f"{path}: {no_such_file(path)}")])
        fragment = read_tree(read_text(path), str(path))
        _require_block(fragment)
        if "include" in fragment.content:
            reason = "a fragment cannot include; list its fragments in the experiment"
            raise ConfigError([problem(fragment.content["include"].origin, "include", reason)])
        yield fragment


def _require_block(tree: Tree) -> None:
    if not isinstance(tree.content, dict):
        raise ConfigError([problem(tree.origin, "", f"expected a block of keys, got {show(tree)}")])


def _apply(schema: Any, tree: Tree, overrides: Sequence[str]) -> Tree:
    for override in overrides:
        key, equals, text = override.partition("=")
        path = key.strip()
        source = f"--set {path}"
        if not equals or not all(path.split(".")):
            raise ConfigError([f"--set {override}: expected key=value, such as optim.lr=2e-4"])
        options = _options(schema, path)
        if str in options:
            if key[-1:].isspace() and text[:1].isspace():
                raise ConfigError([problem(source, path, f"blanks around =; write '{path}={text.strip()}'")])
            value = read_override_text(text, source, path, optional=NoneType in options)
        elif not text.strip():
            raise ConfigError([problem(source, path, "needs a value; write null for none")])
        else:
            value = read_tree(text, source, override=path)
        tree = replace_at(tree, path.split("."), value)
    return tree


def _options(schema: Any, path: str) -> tuple[Any, ...]:
    """The types that a key may have, such as (str, NoneType); text for an unknown key, which is refused later."""
    options: tuple[Any, ...] = (schema,)
    for name in path.split("."):
        block = next((option for option in options if is_dataclass(option)), None)
        hint = get_type_hints(block).get(name, str) if block is not None else str
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return options


# ---- tree -> dataclasses


def _build(schema: type[T], tree: Tree, rules: Rules | None) -> T:
    builder = _Builder(schema, rules or {}, [])
    built: T = builder.block(schema, tree, "")
    if builder.problems:
        raise ConfigError(builder.problems)
    return built


@dataclass(frozen=True)
class _Builder:
    """Builds dataclasses from a tree. A faulty value becomes INVALID and is recorded; the rest is still checked."""

    root: type
    rules: Rules
    problems: list[str]

    def fail(self, tree: Tree, path: str, reason: str) -> Any:
        self.problems.append(problem(tree.origin, path, reason))
        return INVALID

    def value(self, hint: Any, tree: Tree, path: str) -> Any:
        """int, float, bool, str, Literal, tuple[T, ...], tuple[T, T], a dataclass, or one of these | None."""
        options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if tree.content is None and NoneType in options:
            return None
        (hint,) = (option for option in options if option is not NoneType)
        if is_dataclass(hint):
            return self.block(hint, tree, path)
        if get_origin(hint) is Literal:
            return self.choice(get_args(hint), tree, path)
        if get_origin(hint) is tuple:
            return self.items(get_args(hint), tree, path)
        return self.scalar(hint, tree, path)

    def scalar(self, hint: Any, tree: Tree, path: str) -> Any:
        kind = type(tree.content)
        if kind is hint:
            return tree.content
        if hint is float and kind is int:
            return float(tree.content)
        advice = "; put it in quotes" if hint is str and kind in SCALARS else ""
        return self.fail(tree, path, f"expected {SCALARS[hint]}, got {show(tree)}{advice}")

    def choice(self, options: Sequence[Any], tree: Tree, path: str) -> Any:
        if any(type(tree.content) is type(option) and tree.content == option for option in options):
            return tree.content
        names = [write_value(option) for option in options]
        suggestion = did_you_mean(str(tree.content), names)
        return self.fail(tree, path, f"expected one of {', '.join(names)}; got {show(tree)}{suggestion}")

    def items(self, hints: tuple[Any, ...], tree: Tree, path: str) -> Any:
        if not isinstance(tree.content, list):
            return self.fail(tree, path, f"expected a list in [], got {show(tree)}")
        if hints[-1] is Ellipsis:
            hints = hints[:1] * len(tree.content)
        if len(hints) != len(tree.content):
            return self.fail(tree, path, f"expected a list of {len(hints)}, got one of {len(tree.content)}")
        pairs = enumerate(zip(hints, tree.content, strict=True))
        items = tuple(self.value(hint, item, f"{path}[{i}]") for i, (hint, item) in pairs)
        return INVALID if any(item is INVALID for item in items) else items

    def block(self, schema: Any, tree: Tree, path: str) -> Any:
        """A dataclass; a range error of its __post_init__ is reported at the key that it names."""
        if not isinstance(tree.content, dict):
            return self.fail(tree, path, f"expected a block of keys, got {show(tree)}")
        before = len(self.problems)
        known = {field.name: field for field in fields(schema)}
        for key, child in tree.content.items():
            if key not in known:
                self.fail(child, path, f"unknown key {quote(key)}{self.suggestion(key, list(known))}")
        values = {}
        hints = get_type_hints(schema)
        for name, field in known.items():
            if name in tree.content:
                values[name] = self.value(hints[name], tree.content[name], join(path, name))
            elif _is_required(field):
                self.fail(tree, path, f"missing key '{name}'")
        if len(self.problems) > before:
            return INVALID
        try:
            built = schema(**values)
            if schema in self.rules:
                self.rules[schema](built)
        except InvalidValueError as error:
            return self.fail(deepest(tree, error.field), join(path, error.field), error.reason)
        return built

    def suggestion(self, key: str, siblings: Sequence[str]) -> str:
        """A sibling with a similar name, or else a key of the same name in another block."""
        if len(self.problems) >= MAX_PROBLEMS:  # not shown, and looking for it takes a millisecond
            return ""
        elsewhere = [path for path in schema_keys(self.root) if path.rpartition(".")[2] == key]
        return did_you_mean(key, siblings) or (f"; did you mean '{elsewhere[0]}'?" if elsewhere else "")


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


# ---- dataclasses -> text


def _dump_block(block: Any, indent: str) -> Iterator[str]:
    for field in fields(block):
        value = getattr(block, field.name)
        if is_dataclass(value):
            yield f"{indent}{field.name}:"
            yield from _dump_block(value, f"{indent}  ")
        else:
            yield f"{indent}{field.name}: {write_value(value)}"
