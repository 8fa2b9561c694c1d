"""YAML text -> a tree of values with file and line, by strict rules.

The text is composed to YAML nodes, so that every key keeps its line. YAML's constructors never run: the rules below
decide the type of a plain scalar, not YAML 1.1.
"""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_NODES = 10_000
MAX_PROBLEMS = 20

INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
FLOAT = re.compile(r"[-+]?((0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+|(0|[1-9][0-9]*)(?=[eE]))([eE][-+]?[0-9]+)?")
# Plain scalars that YAML 1.1 or 1.2 reads as something else than most writers mean, and what to write instead.
QUOTES = "put it in quotes if it is text"
TRAPS = (
    (re.compile(r"yes|no|on|off", re.I), f"write true or false; {QUOTES}"),
    (re.compile(r"true|false|null", re.I), f"write it in lower case; {QUOTES}"),
    (
        re.compile(r"[-+]?0[0-9_]+(\.[0-9_]*)?(e[-+]?[0-9]+)?", re.I),
        f"write it without leading zeros; {QUOTES}",
    ),
    (re.compile(r"[-+]?0[xob][0-9a-f_]+", re.I), f"write it in decimal; {QUOTES}"),
    (re.compile(r"[-+]?[0-9][0-9_]*(:[0-9]+)+(\.[0-9_]*)?"), f"YAML counts it in base 60; {QUOTES}"),
    (re.compile(r"[-+]?[0-9]+_[0-9_.]*"), f"write it without underscores; {QUOTES}"),
    (re.compile(r"[-+]?\.(inf|nan)", re.I), "numbers must be finite"),
)
QUOTED = re.compile(r"""'([^']|'')*'|"([^"\\]|\\.)*\"""", re.S)
# Text that `write_value` leaves without quotes, unless it is one of the traps.
PLAIN_TEXT = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")


class ConfigError(Exception):
    """What is wrong with a configuration, one line per problem: `file:line: path: reason`."""

    def __init__(self, problems: Sequence[str]) -> None:
        more = len(problems) - MAX_PROBLEMS
        shown = [*problems[:MAX_PROBLEMS], *([f"... and {more} more"] if more > 0 else [])]
        super().__init__("\n".join(shown))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Tree:
    """A value, list or block and its origin, `configs/x.yaml:31` or `--set a.b`."""

    content: Any
    """None, bool, int, float, str, list[Tree] or dict[str, Tree]."""
    origin: str


def read_text(path: Path) -> str:
    """The text of a configuration file, of MAX_BYTES at most. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError([f"{path}: {no_such_file(path)}"]) from error
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    if len(data) > MAX_BYTES:
        raise ConfigError([f"{path}: larger than {MAX_BYTES} bytes; is it a configuration?"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{path}:{line}: not UTF-8 text"]) from error


def read_tree(text: str, source: str, override: str = "") -> Tree:
    """One YAML document as a tree; an empty document is an empty block. Raises ConfigError.

    source    names the text in errors, with line numbers
    override  path that an override sets to this text; no line numbers then
    """
    numbered = not override
    if len(text) > MAX_BYTES:
        raise ConfigError([f"{source}: larger than {MAX_BYTES} bytes; is it a configuration?"])
    root = _compose(text, source, numbered)
    place = f"{source}:1" if numbered else source
    if root is None:
        return Tree({}, place)
    scanner = _Scanner(source, numbered, [])
    tree = scanner.tree(root, place, override)
    if scanner.problems:
        raise ConfigError(scanner.problems)
    return tree


def read_override_text(text: str, source: str, path: str, *, optional: bool) -> Tree:
    """The value of a text key in an override: the literal text, or the content of its quotes if all of it is quoted.

    optional   null is none

    Raises ConfigError.
    """
    if optional and text == "null":
        return Tree(None, source)
    if QUOTED.fullmatch(text):
        return read_tree(text, source, override=path)
    if not text.strip():
        none = ", null for none" if optional else ""
        raise ConfigError([problem(source, path, f'needs a value; write "" for an empty text{none}')])
    if yaml.reader.Reader.NON_PRINTABLE.search(text) or len(text.splitlines()) > 1:
        raise ConfigError([problem(source, path, f"{quote(text)}: a control character, or bytes that are not UTF-8")])
    return Tree(text, source)


def _compose(text: str, source: str, numbered: bool) -> yaml.Node | None:
    line = 0
    try:
        loader = _StrictLoader(text) if numbered else _OverrideLoader(text)
        try:
            return loader.get_single_node()
        except (ValueError, OverflowError):  # PyYAML passes on what int() and chr() raise at absurd escapes
            line, reason = loader.line, "an escape or directive out of range"
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line, reason = mark.line if mark else 0, error.problem or "not YAML"
    except yaml.reader.ReaderError as error:
        line, reason = text.count("\n", 0, error.position), "a control character"
    place = f"{source}:{line + 1}" if numbered else source
    raise ConfigError([f"{place}: cannot be read: {reason}"])


class _StrictLoader(yaml.SafeLoader):
    """Composes nodes; refuses anchors, aliases, tags, deep nesting and more nodes than a configuration can have."""

    depth = 0
    nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        self.depth += 1
        self.nodes += 1
        refusals = {
            "anchors and aliases are not allowed; use a fragment": getattr(event, "anchor", None),
            "tags are not allowed": getattr(event, "tag", None),
            f"nested deeper than {MAX_DEPTH} levels": self.depth > MAX_DEPTH,
            f"more than {MAX_NODES} keys and values; is it a configuration?": self.nodes > MAX_NODES,
        }
        for reason, refused in refusals.items():
            if refused:
                raise yaml.MarkedYAMLError(problem=reason, problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _OverrideLoader(_StrictLoader):
    """Refuses comments: an override has none, and a `#` in its value must not truncate it."""

    def scan_to_next_token(self) -> None:
        start = self.pointer
        super().scan_to_next_token()
        if "#" in self.buffer[start : self.pointer]:  # blanks, line ends and comments were passed over
            mark = self.get_mark()
            raise yaml.MarkedYAMLError(
                problem="# would start a comment; remove it, or quote the text", problem_mark=mark
            )


@dataclass(frozen=True)
class _Scanner:
    """YAML nodes -> tree; problems of keys and scalars are collected."""

    source: str
    numbered: bool
    problems: list[str]

    def place(self, node: yaml.Node) -> str:
        return f"{self.source}:{node.start_mark.line + 1}" if self.numbered else self.source

    def tree(self, node: yaml.Node, origin: str, path: str) -> Tree:
        if isinstance(node, yaml.MappingNode):
            return Tree(self.block(node, path), origin)
        if isinstance(node, yaml.SequenceNode):
            items = [self.tree(item, self.place(item), f"{path}[{i}]") for i, item in enumerate(node.value)]
            return Tree(items, origin)
        if getattr(node, "style", None) is not None:  # in quotes, or a text block
            return Tree(node.value, origin)
        return Tree(self.plain(node.value, origin, path), origin)

    def block(self, node: yaml.MappingNode, path: str) -> dict[str, Tree]:
        block: dict[str, Tree] = {}
        for key, value in node.value:
            origin = self.place(key)
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(problem(origin, path, "a key must be a name, not a list or block"))
            elif key.value in block:
                first = block[key.value].origin
                self.problems.append(problem(origin, path, f"duplicate key {quote(key.value)}; see {first}"))
            else:
                block[key.value] = self.tree(value, origin, join(path, key.value))
        return block

    def plain(self, text: str, origin: str, path: str) -> bool | int | float | str | None:
        if text in ("", "~", "null"):
            return None
        if text in ("true", "false"):
            return text == "true"
        if INTEGER.fullmatch(text):
            return int(text)
        if FLOAT.fullmatch(text) and math.isfinite(float(text)):
            return float(text)
        for pattern, advice in TRAPS:
            if pattern.fullmatch(text):
                self.problems.append(problem(origin, path, f"{quote(text)} is ambiguous: {advice}"))
        return text


def merge(base: Tree, over: Tree) -> Tree:
    """Blocks merge key by key; anything else replaces, so that null removes a block."""
    if not (isinstance(base.content, dict) and isinstance(over.content, dict)):
        return over
    merged = dict(base.content)
    for key, tree in over.content.items():
        merged[key] = merge(merged[key], tree) if key in merged else tree
    return Tree(merged, over.origin)


def replace_at(tree: Tree, keys: Sequence[str], value: Tree) -> Tree:
    """The tree with the value merged in at a path; missing blocks are created."""
    if not keys:
        return merge(tree, value)
    old = tree if isinstance(tree.content, dict) else Tree({}, value.origin)
    child = old.content.get(keys[0], Tree(None, value.origin))
    return Tree({**old.content, keys[0]: replace_at(child, keys[1:], value)}, old.origin)


def deepest(tree: Tree, path: str) -> Tree:
    """The tree at a dotted path, or the last block on the way to it."""
    for key in path.split("."):
        if not isinstance(tree.content, dict) or key not in tree.content:
            break
        tree = tree.content[key]
    return tree


def write_value(value: Any) -> str:
    """A scalar, or a tuple of them in flow style, as YAML text that `read_tree` reads back as it was."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return f"[{', '.join(write_value(item) for item in value)}]"
    if isinstance(value, str):
        trapped = any(pattern.fullmatch(value) for pattern, _ in TRAPS)
        if trapped or not PLAIN_TEXT.fullmatch(value):
            return yaml.safe_dump(value, default_style='"', width=math.inf).strip()
    return str(value)


# ---- words of an error


def problem(origin: str, path: str, reason: str) -> str:
    return f"{origin}: {path or 'top level'}: {reason}"


def join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def did_you_mean(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word[:100], known, n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def no_such_file(path: Path) -> str:
    siblings = sorted(other.name for other in path.parent.glob("*.yaml"))
    return "no such file" + did_you_mean(path.name, siblings)


def quote(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def show(tree: Tree) -> str:
    """A short description of the value, for errors."""
    if isinstance(tree.content, dict):
        return "a block of keys"
    if isinstance(tree.content, list):
        return "a list"
    return quote(tree.content) if isinstance(tree.content, str) else write_value(tree.content)
