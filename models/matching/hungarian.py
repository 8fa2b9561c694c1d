"""Hungarian matching of predictions with objects: all layers and images of a step, with one device synchronisation."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from models.matching.assignment import Pairs, ShortLists, assign
from models.matching.cost import ImageCosts, MatchingCost
from models.structures import Target

REDUCE_ABOVE = 2**20
"""Size of a layer's cost matrix from which short lists are tried; smaller ones are solved whole as fast"""
REDUCE_RATIO = 4
"""Predictions per object from which short lists are tried: with fewer, objects compete for the same ones"""
LIST_LENGTH = 16
"""First length of the short lists"""
LIST_GROWTH = 4
"""Growth factor of lists that are too short"""


class NonFiniteCostError(FloatingPointError):
    """A matching cost is NaN or infinite: the predictions have diverged."""


@dataclass(frozen=True)
class MatchedPairs:
    """Matched pairs of all layers and images, layer by layer and image by image."""

    layer: Tensor
    """(n,) int64"""
    image: Tensor
    """(n,) int64"""
    query: Tensor
    """(n,) int64 row of the prediction"""
    target: Tensor
    """(n,) int64 row of the object among those of the whole batch, image after image"""
    positives: Tensor
    """(layers, B) int64 pairs, on the host"""


@dataclass(frozen=True, kw_only=True)
class HungarianMatcher:
    """Settings of the exact one-to-one assignment of least total cost."""

    cost: MatchingCost
    drop_off_centre: bool
    """Un-assign matched predictions whose centre is not strictly inside their object (the published Deformable DETR
    baseline)"""


@dataclass(frozen=True)
class MatchRequest:
    """Predictions to match; padding rows behind the first `counts` of an image are never matched."""

    matcher: HungarianMatcher
    logits: Tensor
    """(layers, B, Q, K)"""
    boxes: Tensor
    """(layers, B, Q, 4) cxcywh in [0, 1]"""
    counts: Sequence[int]
    """Per image"""
    targets: Sequence[Target]
    """Per image"""
    labels: Sequence[Tensor]
    """Per image (N,): classes to match; not the target's own where proposals are class-agnostic"""

    def problems(self) -> list["_Problem"]:
        found: list[_Problem] = []
        every = range(len(self.logits))
        for image, (count, target, labels) in enumerate(zip(self.counts, self.targets, self.labels, strict=True)):
            if count == 0 or len(labels) == 0:
                continue
            reduced = count * len(labels) >= REDUCE_ABOVE and count >= REDUCE_RATIO * len(labels)
            for layers in [every[i : i + 1] for i in every] if reduced else [every]:
                part = slice(layers.start, layers.stop)
                logits, boxes = self.logits[part, image, :count], self.boxes[part, image, :count]
                costs = ImageCosts(self.matcher.cost, logits, boxes, target, labels)
                found.append((_ReducedProblem if reduced else _WholeProblem)(self, image, layers, costs))
        return found


@torch.no_grad()
def match(requests: Sequence[MatchRequest]) -> list[MatchedPairs]:
    """The matches of every request.

    Synchronises with the device once, and once more for each extension of short lists. All ranks of a process group
    must call it together. Raises NonFiniteCostError, on all ranks if a cost is NaN or infinite on one.
    """
    problems = [problem for request in requests for problem in request.problems()]
    with _threads() as threads:
        requested = [problem.request_costs(threads) for problem in problems]
        state = _finiteness(problems, requests[0].logits.device)
        (host_state,), *answers = _fetch([[state], *requested])
        _require_finite(host_state.tolist(), problems)
        waiting = problems
        while waiting:
            for problem, answer in zip(waiting, answers, strict=True):
                problem.start([tensor.numpy() for tensor in answer], threads)
            waiting = [problem for problem in waiting if not problem.finish()]
            answers = _fetch([problem.request_costs(threads) for problem in waiting]) if waiting else []
    return [_collect(request, [problem for problem in problems if problem.request is request]) for request in requests]


@contextmanager
def _threads() -> Iterator[Executor]:
    """A pool of torch.get_num_threads() threads with one torch thread each; torch and scipy's solver release the GIL.

    set_num_threads in a worker also sets the default of threads that start later, so it is restored at the end.
    """
    count = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)) as threads:
            yield threads
    finally:
        torch.set_num_threads(count)


class _Problem(ABC):
    """The assignments of one image in some layers: costs from the device, solved on the host."""

    def __init__(self, request: MatchRequest, image: int, layers: range, costs: ImageCosts) -> None:
        self.request = request
        self.image = image
        self.layers = layers
        self.costs = costs
        self.total: Tensor = costs.predictions.pixels.new_zeros(())
        """Sum of all costs, on the device"""
        self.pairs: list[Pairs] = []
        """Per layer: objects and queries"""

    def request_costs(self, threads: Executor) -> list[Tensor]:
        """Compute on the device what `start` needs on the host."""
        geometry = [self.costs.centres(), self.costs.objects.pixels] if self.request.matcher.drop_off_centre else []
        return [*geometry, *self._compute_costs(threads)]

    def start(self, answer: list[NDArray[Any]], threads: Executor) -> None:
        """Begin to solve it in the threads."""
        if self.request.matcher.drop_off_centre:
            self.centres, self.object_pixels, *answer = answer
        self._start(answer, threads)

    def finish(self) -> bool:
        """Whether the costs sufficed; if not, `request_costs` gives more."""
        if not self._finish():
            return False
        if self.request.matcher.drop_off_centre:
            layers = zip(self.pairs, self.centres, strict=True)
            self.pairs = [_on_centre(pairs, centres, self.object_pixels) for pairs, centres in layers]
        return True

    @abstractmethod
    def _compute_costs(self, threads: Executor) -> list[Tensor]:
        """Costs that the host needs, computed on the device."""

    @abstractmethod
    def _start(self, costs: list[NDArray[Any]], threads: Executor) -> None:
        """Begin the assignment with these costs."""

    @abstractmethod
    def _finish(self) -> bool:
        """Set `pairs`; False if the costs were too few to prove the optimum."""


class _WholeProblem(_Problem):
    """Solved from all costs."""

    def _compute_costs(self, threads: Executor) -> list[Tensor]:
        costs, self.total = self.costs.whole(threads)
        return [costs]  # (layers, N, Q)

    def _start(self, costs: list[NDArray[Any]], threads: Executor) -> None:
        self.solutions = [threads.submit(assign, layer) for layer in costs[0]]

    def _finish(self) -> bool:
        self.pairs = [solution.result() for solution in self.solutions]
        return True


class _ReducedProblem(_Problem):
    """A single layer, solved from the cheapest predictions of each object, and from more if these are too few."""

    lists: ShortLists | None = None
    length = 0
    too_short: NDArray[np.int64]

    def _compute_costs(self, threads: Executor) -> list[Tensor]:
        objects, device = len(self.costs), self.costs.device
        self.length = min(self.length * LIST_GROWTH or LIST_LENGTH, objects)
        if self.lists is None:
            found = self.costs.cheap(self.length, threads)
            self.total = found.total
        else:
            rows = torch.from_numpy(self.too_short).to(device, non_blocking=True)
            found = self.costs.cheapest(rows, self.length, threads)
        return [found.costs, found.queries, found.rest]  # (n, K), (n, K), (n,)

    def _start(self, costs: list[NDArray[Any]], threads: Executor) -> None:
        if self.lists is None:
            self.lists = ShortLists(*costs)
        else:
            self.lists.lengthen(self.too_short, *costs)
        self.solution = threads.submit(self.lists.assign)

    def _finish(self) -> bool:
        pairs, self.too_short = self.solution.result()
        self.pairs = [pairs]
        return len(self.too_short) == 0


def _on_centre(pairs: Pairs, centres: NDArray[np.float32], objects: NDArray[np.float32]) -> Pairs:
    """The pairs whose predicted centre, (Q, 2), lies strictly inside its object, (N, 4) xyxy."""
    rows, queries = pairs
    corners, centre = objects[rows], centres[queries]
    inside = ((centre > corners[:, :2]) & (centre < corners[:, 2:])).all(-1)
    return rows[inside], queries[inside]


def _fetch(groups: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Copy groups of tensors to the host together."""
    flat = iter(to_host([tensor for group in groups for tensor in group]))
    return [[next(flat) for _ in group] for group in groups]


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies on the host, after a single synchronisation."""
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    if tensors[0].is_cuda:
        torch.cuda.current_stream(tensors[0].device).synchronize()  # sync
    return copies


def _finiteness(problems: Sequence[_Problem], device: torch.device) -> Tensor:
    """(1 + problems,) int32: whether a cost is not finite on any rank, and in each problem of this rank."""
    totals = torch.stack([torch.zeros((), device=device), *(problem.total for problem in problems)])
    bad = ~totals.isfinite()
    state = torch.cat([bad.any()[None], bad[1:]]).int()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(state[:1], op=dist.ReduceOp.MAX)
    return state


def _require_finite(state: list[int], problems: Sequence[_Problem]) -> None:
    """Raises NonFiniteCostError. `state` as from `_finiteness`."""
    if not state[0]:
        return
    here = {p.request.targets[p.image].image_id for p, bad in zip(problems, state[1:], strict=True) if bad}
    where = f"images {sorted(here)}" if here else "images of another rank"
    raise NonFiniteCostError(
        f"the matching cost is NaN or infinite ({where}), as the predictions are: training has diverged; lower "
        "optim.lr, set optim.clip_grad_norm, or runtime.amp: none"
    )


def _collect(request: MatchRequest, problems: Sequence[_Problem]) -> MatchedPairs:
    """Copy the pairs of one request to the device."""
    layers, images = len(request.logits), len(request.targets)
    first = np.cumsum([0, *(len(labels) for labels in request.labels)])
    positives = torch.zeros(layers, images, dtype=torch.int64)
    by_place = {(layer, p.image): p.pairs[layer - p.layers.start] for p in problems for layer in p.layers}
    columns = [np.zeros((4, 0), dtype=np.int64)]
    for layer, image in sorted(by_place):
        objects, queries = by_place[layer, image]
        positives[layer, image] = len(objects)
        place = np.full_like(objects, layer), np.full_like(objects, image)
        columns.append(np.stack([*place, queries, objects + first[image]]))  # (4, pairs)
    index = torch.from_numpy(np.concatenate(columns, axis=1)).to(request.logits.device, non_blocking=True)
    layer, image, query, target = index  # (n,) each
    return MatchedPairs(layer, image, query, target, positives)
