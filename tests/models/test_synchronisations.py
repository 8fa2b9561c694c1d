"""How often a training step waits for the device, counted on the CPU: by what would wait on a GPU."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import models.matching.hungarian
from datasets.structures import Batch
from engine.checkpoints.checkpoint import Progress
from engine.distributed.processes import Processes
from engine.meter import Meter
from engine.optim import build_optimizer
from engine.train import Learner, train_one_epoch
from models.build import build_criterion
from tests.support.shrunken import SIDE, random_images, random_target, small_config, small_detector

WAITING = {
    *("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"),  # sizes
    *("_local_scalar_dense", "equal", "is_nonzero"),  # values
}
LIMIT = 5


class Waits:
    """Counts what waits; tensors that live on the host on any machine are known by what made them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.of_the_host: list[Tensor] = []

    def on_host(self, tensor: Tensor) -> bool:
        return any(tensor is known for known in self.of_the_host)


class Operations(TorchDispatchMode):
    """Counts operators that wait, those of the backward pass and of the optimiser included."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        by_length = str(func) == "aten.repeat_interleave.Tensor" and (kwargs or {}).get("output_size") is None
        if (name in WAITING or by_mask or by_length) and not self.waits.on_host(args[0]):
            self.waits.counts[name] += 1
        return func(*args, **(kwargs or {}))


class Copies(TorchFunctionMode):
    """Counts copies to the host and, where they wait, to the device: lists that become tensors there."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") in (None, "cpu"):
            made = func(*args, **kwargs)
            self.waits.of_the_host.append(made)
            return made
        listed = func in (torch.tensor, Tensor.new_tensor)
        fetched = func in (Tensor.cpu, Tensor.tolist) and not self.waits.on_host(args[0])
        to_the_host = func is Tensor.to and "cpu" in args[1:] and not kwargs.get("non_blocking", False)
        if listed or fetched or to_the_host:
            self.waits.counts[func.__name__] += 1
        return func(*args, **kwargs)


def waits_of_a_step(name: str, objects: list[int], monkeypatch: pytest.MonkeyPatch, *overrides: str) -> Counter[str]:
    """What waited, in one optimiser step of `train_one_epoch`."""
    config = small_config(name, *overrides)
    detector = small_detector(config).train()
    optimizer = build_optimizer(detector, config.optim)
    images, mask = random_images([(SIDE, SIDE)] * len(objects))
    batch = Batch(images, mask, [random_target(count, seed=i) for i, count in enumerate(objects)])
    waits = Waits()
    to_host = models.matching.hungarian.to_host

    def counted_to_host(tensors: list[Tensor]) -> list[Tensor]:
        waits.counts["to_host"] += 1
        found = [tensor.clone() for tensor in to_host(tensors)]
        waits.of_the_host.extend(found)
        return found

    monkeypatch.setattr(models.matching.hungarian, "to_host", counted_to_host)
    with Copies(waits), Operations(waits):
        train_one_epoch(
            Learner(
                detector=detector,
                criterion=build_criterion(config),
                optimizer=optimizer,
                scaler=torch.amp.GradScaler("cpu", enabled=False),
            ),
            [batch],
            config=config.optim,
            progress=Progress(),
            num_batches=1,
            processes=Processes(rank=0, world_size=1, device=torch.device("cpu")),
            meter=Meter(),
            warn=print,
            after_step=lambda: False,
        )
    monkeypatch.undo()
    return waits.counts


EXPECTED = {
    "dino_d3q_aitodv2": {"tolist": 2, "to_host": 1, "_local_scalar_dense": 2},
    "deformable_detr_d3q_aitodv2": {"tolist": 2, "to_host": 1, "_local_scalar_dense": 1},
    "dino_aitodv2": {"tolist": 1, "to_host": 1, "_local_scalar_dense": 2},
    "deformable_detr_aitodv2": {"tolist": 1, "to_host": 1, "_local_scalar_dense": 1},
}
"""Query counts and, in D3Q, kernel radii; the matching; the gradient norm and, in DINO, how many labels are flipped."""


@pytest.mark.parametrize("name", EXPECTED)
def test_a_step_waits_as_often_whatever_it_holds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = EXPECTED[name]
    assert sum(expected.values()) <= LIMIT
    for objects in ([1], [300], [0], [3, 40]):
        for layers in (2, 6):
            waits = waits_of_a_step(name, objects, monkeypatch, f"model.decoder.num_layers={layers}")
            assert dict(waits) == expected, (objects, layers)


def test_the_counter_sees_what_waits() -> None:
    waits = Waits()
    values = torch.rand(5)
    with Copies(waits), Operations(waits):
        float(values.sum())
        values[values > 0.5]
        values.nonzero()
        values.tolist()
        values.cpu()
        values.to("cpu")
        values.new_tensor([1.0])
        torch.repeat_interleave(values, values.long())
        assert sum(waits.counts.values()) == 8, waits.counts
        # None of these waits.
        torch.tensor([1.0, 2.0]).to(values.device, non_blocking=True)
        values.to("cpu", non_blocking=True)
        torch.where(values > 0.5, values, 0.0)
        values[values.argsort()]
        torch.tensor([math.pi]).tolist()
    assert sum(waits.counts.values()) == 8, waits.counts
