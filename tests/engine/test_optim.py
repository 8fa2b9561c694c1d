import copy

import pytest
import torch
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


def steps(detector: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    for _ in range(count):
        for parameter in detector.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("fused_before", [True, False])
def test_a_loaded_state_goes_on_as_if_it_had_never_been_saved(fused_before: bool) -> None:
    """Bit for bit; the state of an optimiser without the fused kernel within rounding."""
    torch.manual_seed(0)
    detector = Detector()
    config = OptimConfig(lr=1e-2, weight_decay=0.1)
    optimizer = build_optimizer(detector, config)
    for group in optimizer.param_groups:
        group["fused"] = fused_before
    steps(detector, optimizer, 3)
    resumed_detector = copy.deepcopy(detector)
    resumed = build_optimizer(resumed_detector, config)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(detector, optimizer, 2)
    steps(resumed_detector, resumed, 2)
    assert all(group["fused"] for group in resumed.param_groups)
    tolerance = {"atol": 0.0, "rtol": 0.0} if fused_before else {"atol": 1e-7, "rtol": 1e-6}
    for ours, expected in zip(resumed_detector.parameters(), detector.parameters(), strict=True):
        torch.testing.assert_close(ours, expected, **tolerance)
    assert [group["lr"] for group in resumed.param_groups] == [group["lr"] for group in optimizer.param_groups]


def test_a_gradient_overflow_skips_the_step_and_halves_the_scale() -> None:
    """As train_one_epoch calls it: unscaled, clipped, stepped."""
    detector = Detector()
    optimizer = build_optimizer(detector, OptimConfig(lr=1e-2))
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(loss_scale: float) -> None:
        optimizer.zero_grad()
        outputs = detector.attention.value_proj(detector.backbone(torch.ones(1, 2)))
        scaler.scale(outputs.sum() * loss_scale).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(detector.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()

    step(1.0)
    before = copy.deepcopy(detector.state_dict())
    moments = copy.deepcopy(optimizer.state_dict()["state"])
    step(torch.inf)
    assert scaler.get_scale() == 4.0
    assert all(torch.equal(before[name], value) for name, value in detector.state_dict().items())
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(moments[row][name], after[row][name]) for row in moments for name in moments[row])
    step(1.0)
    assert not torch.equal(before["attention.value_proj.weight"], detector.attention.value_proj.weight)
