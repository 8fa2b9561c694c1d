"""The config of a run, resolved once before data, and without torch, whose import takes seconds.

`read_file` or `read_checkpoint` reads an Experiment: its `config` is for a new training, `resumed` and `evaluated` give
that of a run in the folder of a checkpoint, and of an evaluation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from configs.compare import harmful_differences
from configs.loader import ConfigError, Rules, load_config, parse_config
from configs.paths import escape_path, expand_path
from configs.schema import BackboneConfig, Config, InvalidValueError
from engine.commands.exit_codes import UsageError
from models.backbones.catalog import CATALOG, find_fault


def check_backbone(backbone: BackboneConfig) -> None:
    """Raises InvalidValueError unless the catalogue's entry allows its strides and width."""
    if fault := find_fault(backbone.name, backbone.out_strides, backbone.base_width):
        raise InvalidValueError(*fault)


RULES: Rules = {BackboneConfig: check_backbone}
"""Checks of a config that need more than the config"""
NOWHERE = "runtime.output_dir=null"
"""Applied before the other overrides: any output_dir that remains was given by them"""


@dataclass(frozen=True)
class Experiment:
    """The config of a file or a checkpoint, with overrides and with everything that follows from it."""

    config: Config
    """For a new training"""
    folder: str | None
    """The run folder, if the overrides give one"""

    def resumed(self, checkpoint: Path) -> Config:
        """For a training that resumes: in the folder that holds the checkpoint, unless the overrides give one."""
        if self.folder is not None:
            return self.config
        written = str(self.config.runtime.output_dir)
        try:  # text such as ~/runs/x stays as long as it leads to the checkpoint
            here = expand_path(written, "runtime.output_dir").resolve() == checkpoint.parent.resolve()
        except ConfigError:
            here = False
        return self.config if here else _in_folder(self.config, escape_path(checkpoint.parent))

    def evaluated(self) -> Config:
        """For an evaluation: output_dir is null unless the overrides give one.

        The run folder in a checkpoint's text may have been copied, renamed or moved since.
        """
        return _in_folder(self.config, self.folder)


def read_file(file: Path, overrides: Sequence[str]) -> Experiment:
    """The experiment of a file, with overrides. Raises ConfigError."""
    return _read(lambda settings: load_config(file, settings, RULES), overrides, stem=file.stem)


def read_checkpoint(path: Path, text: str, overrides: Sequence[str]) -> Experiment:
    """The experiment that a checkpoint holds as text, with overrides. Raises ConfigError."""
    experiment = _read(
        lambda settings: parse_config(text, f"{path} (config)", settings, RULES), overrides, stem=path.stem
    )
    return replace(experiment, config=fill_from_run(experiment.config, text, path))


def find_last(config: Config) -> Path | None:
    """last.pth of the run folder, which may be damaged or missing, if the folder holds any checkpoint of a run."""
    folder = expand_path(str(config.runtime.output_dir), "runtime.output_dir")
    return folder / "last.pth" if any(folder.glob("last*.pth")) else None


def continue_config(config: Config, checkpoint_config: str, path: Path, *, allow_change: bool) -> Config:
    """The config of a file, with what the checkpoint's run resolved from its data.

    Raises UsageError for differences that change the training, unless they are allowed.
    """
    earlier = fill_input_statistics(parse_config(checkpoint_config, f"{path} (config)", rules=RULES))
    config = fill_from_run(config, checkpoint_config, path)
    if not allow_change and (differences := harmful_differences(config, earlier)):
        raise UsageError(
            f"{path} has another config; undo the change, start a run of its own in another runtime.output_dir, or "
            "resume with --allow-config-change:\n" + "\n".join(differences)
        )
    return config


def fill_from_run(config: Config, checkpoint_config: str, path: Path) -> Config:
    """The config with what the checkpoint's run resolved from its data, where it has null."""
    model, d3q = config.model, config.model.d3q
    if model.num_classes is not None and (d3q is None or d3q.initial_density is not None):
        return config
    earlier = parse_config(checkpoint_config, f"{path} (config)", rules=RULES).model
    if model.num_classes is None:
        model = replace(model, num_classes=earlier.num_classes)
    if d3q is not None and d3q.initial_density is None and earlier.d3q is not None:
        model = replace(model, d3q=replace(d3q, initial_density=earlier.d3q.initial_density))
    return replace(config, model=model)


def fill_input_statistics(config: Config) -> Config:
    """The config with the mean and deviation that the backbone's weights expect, unless it has its own."""
    if config.data.mean is not None:
        return config
    entry = CATALOG[config.model.backbone.name]
    return replace(config, data=replace(config.data, mean=entry.mean, std=entry.std))


def _read(read: Callable[[Sequence[str]], Config], overrides: Sequence[str], *, stem: str) -> Experiment:
    config = fill_input_statistics(read(overrides))
    if config.runtime.output_dir is None:
        config = _in_folder(config, escape_path(Path("runs") / stem))
    return Experiment(config, folder=read([NOWHERE, *overrides]).runtime.output_dir)


def _in_folder(config: Config, folder: str | None) -> Config:
    return replace(config, runtime=replace(config.runtime, output_dir=folder))
