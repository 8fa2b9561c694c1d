"""AdamW with the published parameter groups, and the learning rate of every step."""

from typing import Any

import torch
from torch import nn

from configs.schema import OptimConfig


def build_optimizer(detector: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """One group per learning rate factor: backbone, sampling offsets, the rest. Weight decay on everything.

    Each group keeps its full learning rate as `base_lr`. All of a step is one fused kernel, also after the state of an
    optimiser without it was loaded. That kernel goes through weights, gradients and moments in the order of their
    memory and does not compare their strides: weights stay contiguous.
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
    """A state dict names the kernel too; the gradient scaler counts on the one that the optimiser was built with."""
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
