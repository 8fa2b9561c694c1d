"""Matching: short lists against scipy on every cost; what counts as a match; costs that are not finite."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import models.matching.hungarian
from d3q import LogSizeL1
from datasets.structures import Target
from models.matching.assignment import ShortLists, assign
from models.matching.cost import MatchingCost
from models.matching.hungarian import HungarianMatcher, MatchedPairs, MatchRequest, NonFiniteCostError, match

SIZE = (96, 128)


def solve(
    cost: NDArray[np.float32], *, first: int, growth: int = 2, slack: float = 0.0
) -> tuple[NDArray[np.int64], int]:
    """Columns of all rows, and how often the lists were lengthened; what is not listed is known with some slack."""
    count = len(cost)

    def cheapest(
        rows: NDArray[np.int64], length: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
        columns = np.argsort(cost[rows], axis=1, kind="stable")[:, : length + 1].astype(np.int32)
        costs = np.take_along_axis(cost[rows], columns, axis=1)
        rest = costs[:, -1] - slack if length < count else np.full(len(rows), np.inf, dtype=np.float32)
        return costs[:, :-1], columns[:, :-1], rest

    lists, length, rounds = ShortLists(*cheapest(np.arange(count), first)), first, 0
    (rows, columns), too_short = lists.assign()
    while len(too_short):
        length, rounds = min(growth * length, count), rounds + 1
        lists.lengthen(too_short, *cheapest(too_short, length))
        (rows, columns), too_short = lists.assign()
    assert rows.tolist() == list(range(count))
    assert len(set(columns.tolist())) == count
    return columns, rounds


def total(cost: NDArray[np.float32], columns: NDArray[np.int64]) -> float:
    return float(cost.astype(np.float64)[np.arange(len(cost)), columns].sum())


def random_cost(rng: np.random.Generator, kind: str) -> NDArray[np.float32]:
    count = int(rng.integers(1, 60))
    width = int(rng.integers(count + 4, 6 * count + 40))
    cost = rng.normal(size=(count, width))
    if kind == "clustered":  # all objects want the same few predictions
        cost = cost * 0.1 + 3 * np.sort(rng.exponential(size=width))
    elif kind == "row and column":
        cost = rng.random((count, 1)) * rng.random((1, width))
    elif kind == "near":  # points of a plane: neighbours compete
        places, others = rng.random((count, 2)) * 0.2, rng.random((width, 2))
        cost = np.linalg.norm(places[:, None] - others[None], axis=-1)
    elif kind == "large":
        cost = cost * 1e6 - 1e7
    return cost.astype(np.float32)


@pytest.mark.parametrize("kind", ["normal", "clustered", "row and column", "near", "large"])
def test_short_lists_find_the_optimum(kind: str) -> None:
    rng, lengthened = np.random.default_rng(7), 0
    for number in range(60):
        cost = random_cost(rng, kind)
        columns, rounds = solve(cost, first=int(rng.integers(1, 4)), slack=number % 3 * 0.1)
        lengthened += rounds > 0
        expected = linear_sum_assignment(cost)[1]
        assert total(cost, columns) == pytest.approx(total(cost, expected), rel=1e-6), f"{kind} {number}"
        if kind != "row and column":  # drawn from a continuum: one optimum; products have nearly equal ones
            assert columns.tolist() == expected.tolist(), f"{kind} {number}"
    assert lengthened > 10  # the test saw lists that were too short


@pytest.mark.parametrize("values", [1, 2, 5])
def test_short_lists_among_ties(values: int) -> None:
    rng = np.random.default_rng(values)
    for _ in range(40):
        shape = (int(rng.integers(1, 40)), int(rng.integers(80, 200)))
        cost = rng.integers(0, values, shape).astype(np.float32)
        columns, _rounds = solve(cost, first=4)
        assert total(cost, columns) == total(cost, linear_sum_assignment(cost)[1])


def test_short_lists_that_mislead() -> None:
    """The cheapest of every row is the same column, and the second cheapest of the first rows is another's only one."""
    cost = np.full((4, 40), 100.0, dtype=np.float32) + np.arange(40, dtype=np.float32)
    cost[:, 0] = [1.0, 1.001, 1.002, 0.0]
    cost[:3, 1] = [2.0, 2.0005, 2.0]
    cost[2, 2] = 2.0001
    columns, rounds = solve(cost, first=1)
    assert columns.tolist() == linear_sum_assignment(cost)[1].tolist()
    assert rounds > 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 5), (9, 4), (30, 1)])
def test_all_costs(shape: tuple[int, int]) -> None:
    cost = np.random.default_rng(0).random(shape).astype(np.float32)
    rows, columns = assign(cost)
    assert len(rows) == min(shape)
    assert float(cost[rows, columns].sum()) == pytest.approx(float(cost[linear_sum_assignment(cost)].sum()))


def make_request(counts: list[int], queries: list[int], *, layers: int = 2, drop: bool = False) -> MatchRequest:
    generator = torch.Generator().manual_seed(sum(counts))
    targets = []
    for image, count in enumerate(counts):
        sides = 3 + 9 * torch.rand(count, 2, generator=generator)
        corner = torch.rand(count, 2, generator=generator) * 80
        labels = torch.randint(0, 4, (count,), generator=generator)
        targets.append(Target(torch.cat([corner, corner + sides], dim=1), labels, 70 + image, SIZE, SIZE))
    shape = (layers, len(counts), max(queries))
    boxes = torch.rand(*shape, 4, generator=generator) * torch.tensor([1, 1, 0.2, 0.2]) + 0.01
    cost = MatchingCost(
        classification="focal",
        class_weight=2.0,
        box_weight=0.5,
        giou_weight=2.0,
        alpha=0.25,
        gamma=2.0,
        box_distance=LogSizeL1(),
    )
    logits = torch.randn(*shape, 4, generator=generator)
    matcher = HungarianMatcher(cost=cost, drop_off_centre=drop)
    return MatchRequest(matcher, logits, boxes, queries, targets, [target.labels for target in targets])


def as_tuples(matches: MatchedPairs) -> list[tuple[int, ...]]:
    return list(zip(*(t.tolist() for t in (matches.layer, matches.image, matches.target, matches.query)), strict=True))


def use_short_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.matching.hungarian, "REDUCE_ABOVE", 0)
    monkeypatch.setattr(models.matching.hungarian, "LIST_LENGTH", 2)


@pytest.mark.parametrize("drop", [False, True])
def test_short_lists_match_like_all_costs(drop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [make_request([9, 0, 30, 1], [200, 50, 150, 8], drop=drop), make_request([40], [400], layers=1)]
    whole = match(requests)
    use_short_lists(monkeypatch)
    for ours, expected in zip(match(requests), whole, strict=True):
        assert as_tuples(ours) == as_tuples(expected)
        assert ours.positives.tolist() == expected.positives.tolist()
    if drop:
        assert int(whole[0].positives.sum()) < 2 * 40
    else:
        assert whole[0].positives.tolist() == [[9, 0, 30, 1]] * 2


def test_padding_is_never_matched() -> None:
    request = make_request([20, 20], [5, 30])
    (matches,) = match([request])
    assert matches.positives.tolist() == [[5, 20]] * 2
    assert int(matches.query[matches.image == 0].max()) < 5
    assert bool((matches.target[matches.image == 1] >= 20).all())


def test_layers_and_images_do_not_depend_on_one_another() -> None:
    request = make_request([7, 12], [30, 40], layers=3)
    (together,) = match([request])
    for layer in range(3):
        logits, boxes = request.logits[layer : layer + 1, 1:], request.boxes[layer : layer + 1, 1:]
        (alone,) = match([MatchRequest(request.matcher, logits, boxes, [40], request.targets[1:], request.labels[1:])])
        here = (together.layer == layer) & (together.image == 1)
        assert together.query[here].tolist() == alone.query.tolist()


@pytest.mark.parametrize("short_lists", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_cost_that_is_not_finite_names_its_image(
    value: float, short_lists: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if short_lists:
        use_short_lists(monkeypatch)
    request = make_request([3, 2, 4], [60, 60, 60])
    request.boxes[1, 2, 59, 0] = value
    with pytest.raises(NonFiniteCostError, match=r"images \[72\]"):
        match([request])
    request.boxes[1, 2, 59, 0] = 0.5
    match([request])


def _raise_alike(rank: int, store: str, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    request = make_request([3, 0] if rank == 0 else [0, 0], [40, 40])
    match([request])
    request.logits[0, 0, 0] = torch.nan
    try:
        match([request])
    except NonFiniteCostError as error:
        Path(folder, str(rank)).write_text(str(error))
    dist.destroy_process_group()


def test_all_processes_raise_together(tmp_path: Path) -> None:
    """The second process has no object, hence no cost of its own."""
    torch.multiprocessing.spawn(_raise_alike, args=(str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    assert "(images [70])" in (tmp_path / "0").read_text()
    assert "(images of another rank)" in (tmp_path / "1").read_text()


class Recording(LogSizeL1):
    """Notes how many threads torch may use where the costs are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def pairwise(self, pred: Tensor, target: Tensor) -> Tensor:
        self.threads.add(torch.get_num_threads())
        return super().pairwise(pred, target)


def test_threads_share_the_cores() -> None:
    """Costs are computed in as many threads as torch may use, each with one; afterwards all is as before."""
    request, distance = make_request([9], [200]), Recording()
    request = replace(
        request, matcher=replace(request.matcher, cost=replace(request.matcher.cost, box_distance=distance))
    )
    torch.set_num_threads(2)
    try:
        match([request])
        with ThreadPoolExecutor(1) as thread:
            assert thread.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert distance.threads == {1}
