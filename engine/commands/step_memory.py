"""Estimate the peak memory of a training step with fake tensors, before the first step."""

import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from configs.schema import Config
from models.build import build_criterion, build_detector, expected_queries
from models.criterion import Criterion
from models.deformable_detr import DeformableDETR
from models.dino import DINO
from models.matching.cost import BLOCK_ELEMENTS
from models.matching.hungarian import MatchedPairs
from models.structures import DetectorOutput, LayerPredictions, QueryBudget
from ops.backends import FORMS, choose_backend, forced_backend

MOMENTS = 2
"""Tensors that AdamW keeps per trained parameter"""


@dataclass(frozen=True)
class StepMemory:
    """Bytes of tensors, without the libraries' own memory."""

    weights: int
    """Parameters and buffers"""
    trained: int
    """Trained parameters: once more for gradients, twice more for the optimiser"""
    step: int
    """Peak from the forward to the backward pass, with weights and gradients, without the optimiser's state"""

    @property
    def peak(self) -> int:
        """Peak of every step but the first."""
        return self.step + MOMENTS * self.trained


@dataclass(frozen=True)
class StepShapes:
    """What the memory of a step depends on besides the experiment."""

    size: tuple[int, int]
    """(H, W) of the padded images, px"""
    objects: Sequence[int]
    """Per image"""
    queries: Sequence[int]
    """Per image"""
    device_type: str
    """cpu | cuda"""
    autocast: torch.dtype | None = None
    """Of the network"""


def estimate_training_step(
    config: Config, *, size: tuple[int, int], objects: Sequence[int], device_type: str, autocast: torch.dtype | None
) -> StepMemory:
    """Estimate the memory of a training step with fake tensors; takes seconds.

    size          (H, W) of the padded images, px
    objects       per image
    device_type   cpu | cuda, where the step will run
    autocast      type of the network where it is not float32
    """
    shapes = StepShapes(size, objects, expected_queries(config, objects), device_type, autocast)
    return estimate_step(partial(build_detector, config), build_criterion(config), shapes)


def estimate_step(build: Callable[[], DINO | DeformableDETR], criterion: Criterion, shapes: StepShapes) -> StepMemory:
    """Estimate the memory of a step of the detector that `build` makes; takes seconds and draws no random number.

    Runs CPU operators, except those that save other tensors on a GPU, for a step on a GPU. Assumes that the matched
    sets are as large as possible.
    """
    on_gpu = shapes.device_type == "cuda" and torch.cuda.is_available()
    backend = choose_backend(shapes.device_type, torch.cuda.current_device() if on_gpu else None)
    shapes_only = FakeTensorMode(allow_non_fake_inputs=True)
    operators = _GpuOperators() if shapes.device_type == "cuda" else nullcontext()
    with forced_backend(backend if backend in FORMS else "auto"), shapes_only, operators, _LiveTensors() as tensors:
        detector = build().train()
        weights = tensors.live
        trained = sum(p.nbytes for p in detector.parameters() if p.requires_grad)
        _known_counts(detector, shapes.queries)
        _run_step(detector, criterion, shapes)
        return StepMemory(weights, trained, tensors.peak)


def _run_step(detector: nn.Module, criterion: Criterion, shapes: StepShapes) -> None:
    """Forward pass, matching, losses, backward pass, all on fake tensors."""
    batch = len(shapes.objects)
    targets = [_Objects.of(count, i, shapes.size) for i, count in enumerate(shapes.objects)]
    images, padding_mask = torch.empty(batch, 3, *shapes.size), torch.zeros(batch, *shapes.size, dtype=torch.bool)
    with nullcontext() if shapes.autocast is None else torch.autocast("cpu", dtype=shapes.autocast):
        output = detector(images, padding_mask, targets)
    if shapes.device_type == "cuda":
        _match_in_blocks(criterion, output, targets)
    matches = [_assumed_matches(output.queries, shapes), _assumed_matches(criterion.proposals(output), shapes)]
    with torch.autocast("cpu", enabled=False):
        work = criterion.matched_sets(output, targets, matches)
        sums = [value.sum() for loss, matched in work for value in loss(matched).values()]
        sums += criterion.auxiliary(output, targets).values()
    total = torch.stack(sums).sum()
    del output, matches, work, sums
    total.backward()


def _known_counts(detector: DINO | DeformableDETR, queries: Sequence[int]) -> None:
    """Give the detector known query counts, the only values that a forward pass reads from a tensor."""
    detector.query_budget = _KnownCounts(detector.query_budget, queries)


class _KnownCounts(nn.Module):
    """A query budget that runs the real one and returns the given counts."""

    def __init__(self, budget: QueryBudget, queries: Sequence[int]) -> None:
        super().__init__()
        self.budget = budget
        self.queries = list(queries)

    def forward(self, feature_map: Tensor, padding_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        _, aux = self.budget(feature_map, padding_mask)
        return torch.tensor(self.queries), aux


@dataclass(frozen=True)
class _Objects:
    """A target of N objects, without positions."""

    boxes_xyxy: Tensor
    boxes: Tensor
    labels: Tensor
    size: tuple[int, int]
    image_id: int

    @classmethod
    def of(cls, count: int, image_id: int, size: tuple[int, int]) -> "_Objects":
        labels = torch.zeros(count, dtype=torch.int64)
        return cls(torch.empty(count, 4), torch.empty(count, 4), labels, size, image_id)


def _assumed_matches(predictions: LayerPredictions, shapes: StepShapes) -> MatchedPairs:
    """Matches of every object in every layer; allocates all costs of the decoder meanwhile, as the matcher does."""
    layers, images = predictions.logits.shape[:2]
    if layers > 1:
        costs = [torch.empty(layers, *pair) for pair in zip(shapes.objects, predictions.counts, strict=True)]
        del costs
    pairs = sum(min(pair) for pair in zip(shapes.objects, predictions.counts, strict=True))
    index = torch.zeros(layers * pairs, dtype=torch.int64)
    return MatchedPairs(index, index, index, index, torch.zeros(layers, images, dtype=torch.int64))


@torch.no_grad()
def _match_in_blocks(criterion: Criterion, output: DetectorOutput, targets: Sequence["_Objects"]) -> None:
    """Compute the costs as a GPU does, in larger blocks than a CPU: one block of each image."""
    problems = [problem for request in criterion.match_requests(output, targets) for problem in request.problems()]
    for costs in (problem.costs for problem in problems):
        rows = torch.arange(min(len(costs), max(1, BLOCK_ELEMENTS["cuda"] // (costs.layers * costs.queries))))
        costs.cost.of_pairs(costs.predictions, costs.objects.select(rows))


class _GpuOperators(TorchFunctionMode):
    """Save for the backward pass on a CPU what GPU operators save, where they differ.

    Source: torch's autocast reference (operators that autocast to float32 on CUDA), `native_dropout`, and
    `scaled_dot_product_attention`, whose GPU kernels keep no probabilities with dropout either.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if func is F.dropout and given["training"] and given["p"] > 0:
            return torch.native_dropout(args[0], given["p"], True)[0]  # a mask of a byte per number
        if func in (F.layer_norm, F.group_norm) and torch.is_autocast_enabled("cpu"):
            return func(args[0].float(), *args[1:], **given)
        if func is F.scaled_dot_product_attention:
            given = given | {"dropout_p": 0.0}
        return func(*args, **given)


class _LiveTensors(TorchDispatchMode):
    """Sum up the storages of all tensors that operators create, from creation until they are freed.

    Constant tensors, such as the query counts, are real, and so is what is computed from them alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if given and not any(isinstance(value, FakeTensor) for value in given):
            with _disable_current_modes():
                return func(*args, **(kwargs or {}))
        try:
            result = func(*args, **(kwargs or {}))
        except DataDependentOutputException:  # a value that fake tensors lack: flipped labels, a kernel's radius
            return 0
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return

        def freed(_: object) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)
