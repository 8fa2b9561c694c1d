"""The config of a run, resolved without torch, whose import takes seconds: mistakes are told before."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from configs.compare import harmful_differences
from configs.loader import ConfigError, load_config, parse_config
from configs.paths import escape_path, expand_path
from configs.schema import Config
from engine.commands.exit_codes import UsageError
from models.backbones.statistics import input_statistics

NOWHERE = "runtime.output_dir=null"
"""An override that comes before the others: what remains was named by them"""


def resolve_config(file: Path, overrides: Sequence[str]) -> Config:
    """The experiment of a file with overrides, and with everything that follows from it filled in.

    Raises ConfigError.
    """
    return _in_folder(fill_input_statistics(load_config(file, overrides)), Path("runs") / file.stem)


def resolve_checkpoint(path: Path, text: str, overrides: Sequence[str], *, file: Path | None = None) -> Config:
    """The config that a checkpoint holds as text, or that of a file, with overrides, and filled in.

    Its output_dir is null unless the overrides name one: the run that the text speaks of may have been copied, renamed
    or moved since. Raises ConfigError.
    """
    return fill_input_statistics(_read(path, text, [NOWHERE, *overrides], file))


def resolve_resumed(path: Path, text: str, overrides: Sequence[str], *, file: Path | None = None) -> Config:
    """The same for a training that resumes: in the folder that holds the checkpoint, unless the overrides name one.

    Raises ConfigError.
    """
    config = resolve_checkpoint(path, text, overrides, file=file)
    if config.runtime.output_dir is not None:
        return config
    written = _in_folder(_read(path, text, overrides, file), Path("runs") / (file or path).stem)
    try:  # text such as ~/runs/x stays as long as it leads to the checkpoint
        here = expand_path(str(written.runtime.output_dir), "runtime.output_dir").resolve() == path.parent.resolve()
    except ConfigError:
        here = False
    folder = str(written.runtime.output_dir) if here else escape_path(path.parent)
    return replace(config, runtime=replace(config.runtime, output_dir=folder))


def find_last(config: Config) -> Path | None:
    """last.pth of the run folder, which may be damaged or gone, where the folder holds a checkpoint of a run."""
    folder = expand_path(str(config.runtime.output_dir), "runtime.output_dir")
    return folder / "last.pth" if any(folder.glob("last*.pth")) else None


def continue_config(config: Config, checkpoint_config: str, path: Path, *, allow_change: bool) -> Config:
    """The config with what the checkpoint's run took from its data.

    Raises UsageError unless it makes the same training of it, or is allowed not to.
    """
    earlier = fill_input_statistics(parse_config(checkpoint_config, f"{path} (config)"))
    ours, theirs = config.model.d3q, earlier.model.d3q
    if ours is not None and theirs is not None and ours.initial_density is None:
        d3q = replace(ours, initial_density=theirs.initial_density)
        config = replace(config, model=replace(config.model, d3q=d3q))
    if not allow_change and (differences := harmful_differences(config, earlier)):
        raise UsageError(
            f"{path} is of another config; undo the change, start a run of its own in another runtime.output_dir, or "
            "resume all the same by --allow-config-change:\n" + "\n".join(differences)
        )
    return config


def fill_input_statistics(config: Config) -> Config:
    """The config with the mean and deviation that the backbone's weights expect, where it has none of its own."""
    if config.data.mean is not None:
        return config
    mean, std = input_statistics(config.model.backbone.name)
    return replace(config, data=replace(config.data, mean=mean, std=std))


def _read(path: Path, text: str, overrides: Sequence[str], file: Path | None) -> Config:
    return parse_config(text, f"{path} (config)", overrides) if file is None else load_config(file, overrides)


def _in_folder(config: Config, default: Path) -> Config:
    """The config with a run folder, where it has none of its own."""
    if config.runtime.output_dir is not None:
        return config
    return replace(config, runtime=replace(config.runtime, output_dir=escape_path(default)))
