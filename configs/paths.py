"""Expand `~` and `$NAME` in paths when they are opened; configs keep them as written."""

import argparse
import os
import re
from pathlib import Path

from configs.schema import Config
from configs.tree import ConfigError, quote

VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)\}|(?P<bare>[A-Za-z_][A-Za-z0-9_]*))")


def expand_path(text: str, key: str) -> Path:
    """Expand a leading `~` or `~user` and every `$NAME` and `${NAME}`; `$$` is a dollar sign.

    key   names the text in errors

    Raises ConfigError for a variable that is unset or empty, and for a user without a home folder.
    """

    def value(found: re.Match[str]) -> str:
        if found["dollar"]:
            return "$"
        name = found["braced"] or found["bare"]
        if not os.environ.get(name):
            state = "empty" if name in os.environ else "not set"
            remedy = f"export {name}=..., give another path, or write $$ for a dollar sign"
            raise ConfigError([f"{key}: {quote(text)}: the environment variable {name} is {state}; {remedy}"])
        return os.environ[name]

    path = os.path.expanduser(VARIABLE.sub(value, text))
    if path.startswith("~"):
        user = path.partition("/")[0]
        raise ConfigError([f"{key}: {quote(text)}: no home folder of {user}; write ./{user} for a name that starts so"])
    return Path(path)


def escape_path(path: Path | str) -> str:
    """Text that `expand_path` turns into this path."""
    text = str(path).replace("$", "$$")
    return f"./{text}" if text.startswith("~") else text


def path_argument(text: str) -> Path:
    """Argparse type of a path: as written if it exists (the shell expanded it), otherwise expanded."""
    if os.path.lexists(text):
        return Path(text)
    try:
        return expand_path(text, "path")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("path: ")) from error


def new_file_argument(text: str) -> Path:
    """Argparse type of a file to be written, which must not exist."""
    path = path_argument(text)
    if os.path.lexists(path):
        raise argparse.ArgumentTypeError(f"{path} exists; remove it or choose another name")
    return path


def check_paths(config: Config, source: str, *, evaluation: bool, resumed: bool) -> None:
    """Raises ConfigError with every path that cannot be expanded, of those that a run opens.

    source       names the configuration
    evaluation   of a checkpoint: the validation split alone
    resumed      the checkpoint has the weights
    """
    splits = {"val": config.data.val} if evaluation else {"train": config.data.train, "val": config.data.val}
    texts: dict[str, str | None] = {"data.root": config.data.root, "runtime.output_dir": config.runtime.output_dir}
    for name, split in splits.items():
        texts |= {f"data.{name}.annotations": split.annotations, f"data.{name}.images": split.images}
    if not (evaluation or resumed):
        weights = config.model.backbone.weights if config.init_from is None else None
        texts |= {"init_from": config.init_from, "model.backbone.weights": weights}
    problems = []
    for key, text in texts.items():
        try:
            expand_path(text or "", key)
        except ConfigError as error:
            problems += [f"{source}: {problem}" for problem in error.problems]
    if problems:
        raise ConfigError(problems)
