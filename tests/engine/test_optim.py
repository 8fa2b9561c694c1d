import pytest
from torch import nn

from configs.schema import OptimConfig
from engine.optim import build_optimizer, learning_rate_factor, set_learning_rates


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sampling_offsets = nn.Linear(2, 2)
        self.value_proj = nn.Linear(2, 2)


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
        self.attention = Attention()


def test_groups_have_their_learning_rates_and_hold_every_trainable_parameter_once() -> None:
    detector = Detector()
    config = OptimConfig(lr=1e-3, backbone_lr_factor=0.1, sampling_offsets_lr_factor=0.5, weight_decay=0.01)
    optimizer = build_optimizer(detector, config)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in optimizer.param_groups)
    assert rates.keys() == {id(p) for p in detector.parameters() if p.requires_grad}
    assert rates[id(detector.backbone[0].weight)] == pytest.approx(1e-4)
    assert rates[id(detector.attention.sampling_offsets.bias)] == pytest.approx(5e-4)
    assert rates[id(detector.attention.value_proj.weight)] == pytest.approx(1e-3)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.01}


def test_learning_rate_warms_up_and_drops_after_the_named_epochs() -> None:
    config = OptimConfig(warmup_steps=4, lr_drop_epochs=(2, 3), lr_drop_factor=0.1, epochs=4)
    factors = [learning_rate_factor(config, epoch=0, step=step) for step in range(6)]
    assert factors == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    by_epoch = [learning_rate_factor(config, epoch=epoch, step=100) for epoch in range(4)]
    assert by_epoch == pytest.approx([1.0, 1.0, 0.1, 0.01])


def test_set_learning_rates_scales_each_group_from_its_full_rate() -> None:
    optimizer = build_optimizer(Detector(), OptimConfig(lr=1e-3, backbone_lr_factor=0.1))
    set_learning_rates(optimizer, 0.5)
    set_learning_rates(optimizer, 0.1)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == pytest.approx({"rest": 1e-4, "backbone": 1e-5, "sampling_offsets": 1e-4})
