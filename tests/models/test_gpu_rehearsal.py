"""A rehearsal of the GPU: all four detectors on the make-believe device `cuda`, where a tensor of the CPU is an error.

Under FakeTensorMode tensors have shapes, types and devices, but no numbers. Those that the host reads are made up:
query counts, flipped labels, kernel radii, and the costs of the matching, which is solved from them. The backward pass
does not run there.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from importlib import import_module
from itertools import cycle, product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import d3q.density_loss
import models.criterion
import models.matching.cost
import models.matching.hungarian
import models.postprocess
import models.proposals
from configs.schema import Config, FidelityConfig
from datasets.structures import Batch
from models.build import build_criterion, build_detector, build_postprocess
from tests.support.shrunken import DYNAMIC, SIDE, SYSTEMS, random_images, random_target, small_config

OPERATOR = import_module("ops.ms_deform_attn")
"""The module; `ops` has its function under the same name"""
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
FIDELITY = [
    "fidelity.density_merge=sum",
    "fidelity.mask_denoising_padding=true",
    "fidelity.max_denoising_queries=4",
    "fidelity.count_padding=false",
    "fidelity.round_objects=false",
    "fidelity.log_size_form=logsigmoid",
]
DENOISING = [switch for switch in FIDELITY if "denoising" in switch]
COUNTS = (21, 13)
"""Queries of the two images, and whatever else the host reads; within the limits of the small detectors"""
MOVES = {"_to_copy", "copy_"}
FILLS = {"index_put_", "index_put"}
"""A number that is assigned, mask[index] = False, comes as a tensor of the CPU on a GPU too"""


class MixedDevicesError(Exception):
    """An operator whose tensors are not all on the GPU."""


class MakeBelieve(TorchDispatchMode):
    """Stricter than FakeTensorMode: single numbers of the CPU are errors too. What is read from tensors is made up."""

    def __init__(self) -> None:
        super().__init__()
        self.made_up = cycle(COUNTS)
        self.types: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if name in FILLS and args[2].ndim == 0:
            given = [value for value in given if value is not args[2]]
        self.types |= {value.dtype for value in given}
        if len({value.device.type for value in given}) > 1 and name not in MOVES:
            raise MixedDevicesError(f"{func} of {', '.join(f'{tuple(v.shape)} on {v.device.type}' for v in given)}")
        try:
            return func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            return next(self.made_up)


class Answer:
    """A substitute for results that the host would read: all is finite, with arbitrary costs."""

    def __init__(self, tensor: Tensor) -> None:
        assert tensor.device.type == "cuda"
        if tensor.is_floating_point() and tensor.ndim == 1:  # no query outside of a short list is cheaper
            self.numbers = np.full(tensor.shape, np.inf, dtype=np.float32)
        elif tensor.is_floating_point():
            self.numbers = np.random.default_rng(0).random(tensor.shape, dtype=np.float32)
        elif tensor.ndim == 2:  # the queries of short lists
            self.numbers = np.tile(np.arange(tensor.shape[1], dtype=np.int32), (len(tensor), 1))
        else:
            self.numbers = np.zeros(tensor.shape, dtype=np.int32)

    def numpy(self) -> np.ndarray:
        return self.numbers

    def tolist(self) -> list[int]:
        return self.numbers.tolist()


def made_up_answers(tensors: Sequence[Tensor]) -> list[Answer]:
    return [Answer(tensor) for tensor in tensors]


@contextmanager
def autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """torch.autocast("cuda") turns itself off without a GPU; this is what it does with one."""
    if dtype is None:
        yield
        return
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])


def to_gpu(detector: nn.Module) -> nn.Module:
    """`detector.to("cuda")`, which torch refuses for parameters without numbers: only what is registered moves."""
    moved: dict[Tensor, Tensor] = {}
    for module in detector.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in moved:
                moved[parameter] = nn.Parameter(parameter.detach().to("cuda"), requires_grad=parameter.requires_grad)
            module._parameters[name] = moved[parameter]
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to("cuda")
    return detector


@pytest.fixture(autouse=True)
def _make_believe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(models.matching.hungarian, "to_host", made_up_answers)
    # As with compiled kernels, whether or not they are built here: their operator tells the shapes by itself.
    monkeypatch.setattr(OPERATOR, "choose_backend", lambda *_: "cuda")
    yield
    d3q.density_loss.gaussian_kernel.cache_clear()  # kernels without numbers are of no use to others


def rehearse(config: Config, dtype: torch.dtype | None = None, *, training: bool) -> MakeBelieve:
    """A training step but for its backward pass, or an evaluation of a batch; what comes out must be on the GPU."""
    sizes = [(SIDE, SIDE), (80, SIDE)]
    with FakeTensorMode(allow_non_fake_inputs=True), MakeBelieve() as seen:
        detector = to_gpu(build_detector(config)).train(training)
        targets = [random_target(6, sizes[0]), random_target(2, sizes[1], seed=1)]
        batch = Batch(*random_images(sizes), targets).to(torch.device("cuda"))
        if training:
            with autocast(dtype):
                output = detector(batch.images, batch.padding_mask, batch.targets)
            losses = build_criterion(config)(output, batch.targets)
            found = [*losses.values(), torch.stack(list(losses.values())).sum()]
        else:
            with torch.inference_mode(), autocast(dtype):
                output = detector(batch.images, batch.padding_mask)
                detections = build_postprocess(config)(output, sizes, [(192, 192), (160, 192)])
            found = [tensor for each in detections for tensor in (each.boxes, each.scores, each.labels)]
            assert len(detections) == 2
        assert {str(tensor.device) for tensor in found} == {"cuda:0"}
        assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in found)
    return seen


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", SYSTEMS)
def test_every_detector_in_every_precision(name: str, precision: str, training: bool) -> None:
    dtype = PRECISIONS[precision]
    seen = rehearse(small_config(name), dtype, training=training).types
    assert seen & {torch.bfloat16, torch.float16} == ({dtype} if dtype else set())  # autocast is on


@pytest.mark.parametrize("name", SYSTEMS)
def test_without_kernels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OPERATOR, "choose_backend", lambda *_: "grid_sample")
    for training in (True, False):
        rehearse(small_config(name), torch.float16, training=training)


@pytest.mark.parametrize("name", SYSTEMS)
def test_matching_by_short_lists(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of an image with many predictions per object."""
    asked = []
    cheap = models.matching.cost.ImageCosts.cheap

    def counted(*given: Any) -> Any:
        asked.append(given)
        return cheap(*given)

    monkeypatch.setattr(models.matching.cost.ImageCosts, "cheap", counted)
    monkeypatch.setattr(models.matching.hungarian, "REDUCE_ABOVE", 1)
    rehearse(small_config(name), training=True)
    assert asked


@pytest.mark.parametrize(("name", "switch"), [*product(DYNAMIC, FIDELITY), *product(["dino_aitodv2"], DENOISING)])
def test_every_fidelity_switch(name: str, switch: str) -> None:
    for training in (True, False):
        rehearse(small_config(name, switch), training=training)


def test_all_switches_are_rehearsed() -> None:
    assert [switch.partition("=")[0] for switch in FIDELITY] == [
        f"fidelity.{each.name}" for each in fields(FidelityConfig)
    ]
    config = small_config(DYNAMIC[0], *FIDELITY).fidelity
    assert all(getattr(config, each.name) != each.default for each in fields(FidelityConfig))


def after(function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda *given, **named: change(function(*given, **named))


PLANTED: dict[str, tuple[Any, str, Callable[[Any], Any], bool]] = {
    "a row in a loss": (models.criterion, "generalized_iou", lambda iou: iou * torch.tensor([1.0]), True),
    "a number in a loss": (models.criterion, "generalized_iou", lambda iou: iou * torch.tensor(1.0), True),
    "in the density loss": (d3q.density_loss, "density_focal_loss", lambda loss: loss + torch.tensor(0.0), True),
    "a loss that is a number": (d3q.density_loss, "density_focal_loss", lambda loss: torch.tensor(0.0), True),
    "in a matching cost": (models.matching.cost, "generalized_iou", lambda iou: iou + torch.tensor([0.0]), True),
    "rows in postprocess": (models.postprocess, "cxcywh_to_xyxy", lambda box: box * torch.tensor([1.0] * 4), False),
    "a number in postprocess": (models.postprocess, "cxcywh_to_xyxy", lambda box: box * torch.tensor(1.0), False),
    "a result on the host": (models.postprocess, "cxcywh_to_xyxy", lambda box: box.cpu(), False),
    "rows of a table by the host": (models.proposals, "take_rows", lambda rows: rows[:, torch.arange(5)], False),
}
"""Module, function, the substitute of its result, and whether it belongs to training"""


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_noticed(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, change, training = PLANTED[fault]
    monkeypatch.setattr(module, name, after(getattr(module, name), change))
    with pytest.raises((MixedDevicesError, AssertionError), match=r"on cpu|'cpu'"):
        rehearse(small_config("dino_d3q_aitodv2"), training=training)
