"""The weights that a new training starts from: those of a checkpoint, or of the backbone alone."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from configs.loader import parse_config
from configs.paths import expand_path
from configs.schema import BackboneConfig, Config
from engine.checkpoints.checkpoint import load_checkpoint, load_weights
from engine.checkpoints.class_rows import ClassHeads, rows_by_name
from engine.distributed.processes import Processes, any_process
from models.backbones.weights import WeightsError, load_backbone_weights


def load_initial_weights(detector: nn.Module, config: Config, processes: Processes, classes: Sequence[str] = ()) -> str:
    """Load the weights of init_from, or of the backbone; returns where they came from.

    classes   names of those of the training data; without them reset_head: by_name keeps no rows

    Raises CheckpointError and WeightsError.
    """
    density = config.model.d3q and config.model.d3q.initial_density  # None in a check without training data
    start = "" if density is None else f"; density {density:g} objects per cell"
    if config.init_from is not None:
        return _load_checkpoint(detector, config, expand_path(config.init_from, "init_from"), classes, start)
    if config.model.backbone.weights is None:
        return f"random weights{start}"
    return f"backbone {_load_backbone(detector, config.model.backbone, processes)}{start}"


def _load_checkpoint(detector: nn.Module, config: Config, path: Path, classes: Sequence[str], start: str) -> str:
    """start   where the density starts, said if the file has none"""
    checkpoint, by_name = load_checkpoint(path), []
    state = checkpoint.best_weights
    if config.reset_head == "by_name" and classes:
        theirs = parse_config(checkpoint.config, f"{path} (config)").model
        rows, line = rows_by_name(
            detector.state_dict(),
            ClassHeads(classes, config.model.class_agnostic_proposals),
            state,
            ClassHeads(checkpoint.categories, theirs.class_agnostic_proposals),
            source=str(path),
        )
        state, by_name = state | rows, [line]
    loaded = load_weights(detector, state, source=str(path), starts=True, reset=bool(config.reset_head))
    kept = [f"initial values kept in {len(loaded.initial)} tensors"] if loaded.initial else []
    start = start if any(name.startswith("query_budget.") for name in loaded.initial) else ""
    return "\n".join(["; ".join([str(path), *kept, *loaded.describe_tables()]) + start, *by_name])


def _load_backbone(detector: nn.Module, backbone: BackboneConfig, processes: Processes) -> str:
    weights = str(expand_path(str(backbone.weights), "model.backbone.weights"))
    source, problem = "", None
    for first_here in (True, False):  # the first process of a machine downloads, the rest of them find the file
        if (processes.rank_here == 0) == first_here:
            try:
                source = load_backbone_weights(detector.backbone, name=backbone.name, weights=weights)  # type: ignore[arg-type]
            except WeightsError as error:
                problem = error
        if any_process(problem is not None, processes):
            raise problem or WeightsError("another process has no weights for the backbone; see its message")
    return source
