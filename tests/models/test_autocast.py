"""Autocast: what places or ranks boxes is never computed in half precision, and float16 trains under a gradient scaler.

Sums and products may be half; a place in an image, its logarithm or exponential, a rank and a loss may not.
"""

from collections import defaultdict
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from datasets.structures import Batch
from engine.checkpoints.checkpoint import Progress
from engine.distributed.processes import Processes
from engine.meter import Meter
from engine.optim import build_optimizer
from engine.train import Learner, train_one_epoch
from models.build import build_criterion
from tests.support.shrunken import SIDE, SYSTEMS, random_images, random_target, small_config, small_detector

EXACT = {
    *("sigmoid", "logit", "log", "exp", "log_sigmoid_forward", "clamp", "div", "addcdiv"),  # boxes and references
    *("sin", "cos", "pow", "cumsum"),  # positions
    *("topk", "sort", "argsort", "max"),  # ranks of the proposals
    *("abs", "minimum", "maximum", "_log_softmax", "nll_loss_forward", "binary_cross_entropy_with_logits"),  # losses
    *("_softmax", "_cdist_forward"),  # sampling weights, costs
}
HALF = (torch.bfloat16, torch.float16)


class Dtypes(TorchDispatchMode):
    """The floating-point dtypes that each operator was called with, behind autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, set[torch.dtype]] = defaultdict(set)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [value for value in args if isinstance(value, torch.Tensor) and value.is_floating_point()]
        self.seen[func.overloadpacket.__name__.rstrip("_")] |= {tensor.dtype for tensor in tensors}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("dtype", HALF, ids=["bf16", "fp16"])
def test_nothing_sensitive_is_computed_in_half_precision(name: str, dtype: torch.dtype) -> None:
    config = small_config(name, "model.encoder.dropout=0.0", "model.decoder.dropout=0.0")  # dropout divides
    detector = small_detector(config).train()
    images, mask = random_images([(SIDE, SIDE), (80, SIDE)])
    targets = [random_target(6, (SIDE, SIDE)), random_target(2, (80, SIDE))]
    with Dtypes() as dtypes, torch.autocast("cpu", dtype):
        output = detector(images, mask, targets)
        build_criterion(config)(output, targets)
    assert dtype in dtypes.seen["addmm"]  # the test is under autocast
    assert {"sigmoid", "log", "sin", "cumsum", "topk", "_softmax", "clamp"} <= dtypes.seen.keys()
    assert {key: dtypes.seen[key] for key in EXACT & dtypes.seen.keys() if dtypes.seen[key] & set(HALF)} == {}


@pytest.mark.parametrize("name", SYSTEMS)
def test_float16_trains_under_a_gradient_scaler(name: str) -> None:
    config = small_config(name)
    detector = small_detector(config).train()
    before = {key: value.clone() for key, value in detector.state_dict().items()}
    images, mask = random_images([(SIDE, SIDE)] * 2)
    batch = Batch(images, mask, [random_target(6), random_target(0)])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    progress, warnings = Progress(), list[str]()
    train_one_epoch(
        Learner(
            detector=detector,
            criterion=build_criterion(config),
            optimizer=build_optimizer(detector, config.optim),
            scaler=scaler,
            amp="fp16",
        ),
        [batch] * 3,
        config=config.optim,
        progress=progress,
        num_batches=3,
        processes=Processes(0, 1, torch.device("cpu")),
        meter=Meter(),
        warn=warnings.append,
        after_step=lambda: False,
    )
    assert (progress.step, progress.skipped, warnings) == (3, 0, [])
    assert scaler.get_scale() == 2.0**10  # no overflow: no step was skipped
    assert all(bool(parameter.isfinite().all()) for parameter in detector.parameters())
    unchanged = [key for key, p in detector.named_parameters() if p.requires_grad and torch.equal(before[key], p)]
    assert not unchanged
