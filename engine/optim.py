"""AdamW with the published parameter groups, its learning rate schedule, and the moving average of the weights."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from configs.schema import OptimConfig

WARM_UP = 10
"""The average forgets faster at first: its decay is at most (1 + step) / (WARM_UP + step)"""


def build_optimizer(detector: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """One group per learning rate factor: backbone, sampling offsets, the rest. Weight decay on everything.

    Each group keeps its full learning rate as `base_lr`. A step is one fused kernel, also after the state of an
    unfused optimiser was loaded. The kernel reads weights, gradients and moments in memory order without comparing
    their strides: weights must stay contiguous.
    """
    factors = {
        "rest": 1.0,
        "backbone": config.backbone_lr_factor,
        "sampling_offsets": config.sampling_offsets_lr_factor,
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in factors}
    for name, parameter in detector.named_parameters():
        if parameter.requires_grad:
            members[_group_of(name)].append(parameter)
    groups = [
        {"params": members[name], "lr": config.lr * factor, "base_lr": config.lr * factor, "name": name}
        for name, factor in factors.items()
        if members[name]
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    optimizer.register_load_state_dict_pre_hook(_as_fused)
    return optimizer


def _as_fused(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Keep the fused kernel: a state dict names a kernel too, and GradScaler relies on the one chosen at the start."""
    return state | {"param_groups": [group | {"fused": True, "foreach": None} for group in state["param_groups"]]}


def _group_of(name: str) -> str:
    if name.startswith("backbone."):
        return "backbone"
    return "sampling_offsets" if ".sampling_offsets." in name else "rest"


def learning_rate_factor(config: OptimConfig, *, epoch: int, step: int) -> float:
    """Factor of all learning rates: linear warm-up times the drops so far.

    epoch   0-based epoch in progress
    step    0-based optimiser step since the start of training
    """
    warm_up = min(1.0, (step + 1) / (config.warmup_steps + 1))
    drops = sum(epoch >= drop for drop in config.lr_drop_epochs)
    return warm_up * config.lr_drop_factor**drops


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


class WeightAverage:
    """Exponential moving average of the weights, used for evaluation when enabled; buffers are copied.

    detector   the one that is trained, on its device, not wrapped in DistributedDataParallel
    decay      share of the old average that a step keeps, in (0, 1)

    Every process keeps its own; all hold the same bits.

    Source: Polyak and Juditsky, Acceleration of stochastic approximation by averaging, 1992; the warm-up is that of
    TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, detector: nn.Module, *, decay: float) -> None:
        self.detector = deepcopy(detector).requires_grad_(False).eval()
        self._decay = decay
        pairs = list(zip(self.detector.parameters(), detector.parameters(), strict=True))
        self._weights: list[Tensor] = [own for own, source in pairs if source.requires_grad]
        self._sources: list[Tensor] = [source for _, source in pairs if source.requires_grad]
        self._buffers = list(zip(self.detector.buffers(), detector.buffers(), strict=True))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Call it after an optimiser step; `step` counts the steps before it."""
        decay = min(self._decay, (1 + step) / (WARM_UP + step))
        torch._foreach_lerp_(self._weights, self._sources, 1 - decay)
        for own, source in self._buffers:
            own.copy_(source)

    def state(self) -> dict[str, Tensor]:
        return self.detector.state_dict()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Load a checkpoint's average; an empty one, of a run without average, changes nothing."""
        if state:
            self.detector.load_state_dict(state)
