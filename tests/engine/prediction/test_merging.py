"""Merging across seams: nothing lost, nothing doubled, dense neighbours kept; equal to a slow definition."""

import numpy as np
import pytest

from engine.prediction.merging import merge_tiles
from engine.prediction.records import FoundObjects
from engine.prediction.tiles import TilePlan, plan_tiles

PLAN = plan_tiles(400, 200, tile=(200, 200), overlap=40)  # tiles at 0, 160, 200; seams at 180 and 280


def merge(*rows: tuple[int, list[float], float], labels: list[int] | None = None, plan: TilePlan = PLAN) -> list[float]:
    """Rows of (tile, box, score) -> scores of what is kept."""
    boxes = np.array([box for _, box, _ in rows], np.float64)
    scores = np.array([score for *_, score in rows])
    kinds = np.zeros(len(rows), np.int64) if labels is None else np.array(labels)
    found = merge_tiles(plan, np.array([tile for tile, *_ in rows]), FoundObjects(boxes, scores, kinds))
    return found.scores.tolist()


def test_the_plan_is_as_the_cases_below_think() -> None:
    assert PLAN.columns == [0, 160, 200]
    assert PLAN.own_regions[:, 0].tolist() == [0, 180, 280]


def test_an_object_at_a_seam_is_kept_once_and_the_better_one() -> None:
    box = [175.0, 50.0, 187.0, 62.0]
    moved = [176.0, 51.0, 188.0, 63.0]
    assert merge((0, box, 0.5), (1, moved, 0.9)) == [0.9]
    assert merge((0, box, 0.9), (1, moved, 0.5)) == [0.9]


def test_beyond_the_widened_region_the_neighbour_answers() -> None:
    assert merge((0, [190.0, 50.0, 198.0, 58.0], 0.9), (1, [190.0, 50.0, 198.0, 58.0], 0.4)) == [0.4]
    assert merge((0, [188.5, 50.0, 196.5, 58.0], 0.9)) == []  # its centre is 12.5 px behind the seam


def test_an_object_that_only_one_tile_finds_stays_within_the_widening() -> None:
    assert merge((0, [180.0, 50.0, 190.0, 60.0], 0.9)) == [0.9]


def test_dense_neighbours_inside_a_tile_are_never_merged() -> None:
    boxes = [[100.0 + i, 50.0, 110.0 + i, 60.0] for i in range(5)]
    assert len(merge(*((0, box, 0.9 - 0.1 * i) for i, box in enumerate(boxes)))) == 5


def test_other_classes_are_other_objects() -> None:
    box = [175.0, 50.0, 187.0, 62.0]
    assert len(merge((0, box, 0.5), (1, box, 0.9), labels=[0, 1])) == 2


def test_a_cut_box_goes_only_where_a_whole_one_covers_it() -> None:
    cut, whole = [150.0, 50.0, 200.0, 90.0], [150.0, 50.0, 240.0, 90.0]  # tile 0 ends at 200
    assert merge((0, cut, 0.9), (1, whole, 0.3)) == [0.3]
    assert merge((0, cut, 0.9)) == [0.9]
    elsewhere = [150.0, 120.0, 240.0, 160.0]
    assert merge((0, cut, 0.9), (1, elsewhere, 0.3)) == [0.9, 0.3]


def test_a_box_at_the_border_of_the_image_is_not_cut() -> None:
    border, larger = [170.0, 0.0, 184.0, 6.0], [168.0, 0.0, 200.0, 30.0]
    assert merge((0, border, 0.9), (1, larger, 0.3)) == [0.9, 0.3]


def test_tiny_boxes_of_one_object_are_the_same_by_their_centres() -> None:
    """Two boxes of 4 px that are 2 px apart: IoU 0.33."""
    assert merge((0, [178.0, 50.0, 182.0, 54.0], 0.6), (1, [180.0, 50.0, 184.0, 54.0], 0.8)) == [0.8]


def test_a_suppressed_detection_suppresses_nothing() -> None:
    """Three tiles see a row of boxes, each the same as the next: the best and the last stay."""
    plan = plan_tiles(20, 100, tile=(20, 40), overlap=10)
    boxes = [[0.0, y, 10.0, y + 4.0] for y in (31.0, 33.0, 34.4)]
    kept = merge((0, boxes[0], 0.9), (1, boxes[1], 0.8), (0, boxes[2], 0.7), plan=plan)
    assert kept == [0.9, 0.7]


def test_one_tile_is_left_as_it_is() -> None:
    plan = plan_tiles(100, 100, tile=None, overlap=0.2)
    boxes = np.array([[0.0, 0.0, 5.0, 5.0], [90.0, 90.0, 100.0, 100.0], [100.0, 100.0, 100.0, 100.0]])
    found = FoundObjects(boxes, np.array([0.1, 0.9, 0.5]), np.array([0, 0, 0]))
    assert merge_tiles(plan, np.zeros(3, np.int64), found) is found


def slow(plan: TilePlan, tile: np.ndarray, found: FoundObjects) -> np.ndarray:
    """The definition, pair by pair; scores of what is kept."""
    boxes, scores, labels = found.boxes, found.scores, found.labels
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    region = plan.widened_regions[tile]
    order = [
        i for i in np.argsort(-scores) if (centres[i] >= region[i, :2]).all() and (centres[i] < region[i, 2:]).all()
    ]

    def cut(i: int) -> bool:
        edges, image = plan.boxes[tile[i]], (0, 0, plan.width, plan.height)
        return any(edge != side and abs(x - edge) <= 1 for x, edge, side in zip(boxes[i], edges, image, strict=True))

    def overlap(i: int, j: int) -> tuple[float, float, float]:
        sides = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
        areas = [float(np.prod(boxes[k, 2:] - boxes[k, :2])) for k in (i, j)]
        return float(np.prod(sides.clip(min=0))), *areas

    def rivals(i: int, j: int) -> bool:
        return bool(tile[i] != tile[j] and labels[i] == labels[j])

    alive = []
    for i in order:
        covered = False
        for j in order:
            if cut(i) and rivals(i, j) and not cut(j):
                shared, *areas = overlap(i, j)
                covered |= shared > 0 and shared >= 0.5 * min(areas)
        if not covered:
            alive.append(i)
    kept: list[int] = []
    for i in alive:
        for j in kept:
            shared, area, other = overlap(i, j)
            smaller = boxes[i] if area < other else boxes[j]
            near = (np.abs(centres[i] - centres[j]) <= 0.5 * (smaller[2:] - smaller[:2])).all()
            if rivals(i, j) and (shared >= 0.5 * (area + other - shared) or near):
                break
        else:
            kept.append(i)
    return scores[kept]


@pytest.mark.parametrize("seed", range(8))
def test_it_equals_its_definition(seed: int) -> None:
    """Random boxes of 2 to 150 px, crowded, in small tiles."""
    rng = np.random.default_rng(seed)
    plan = plan_tiles(300, 260, tile=(120, 100), overlap=[0.0, 0.2, 30, 60][seed % 4])
    count = 200
    tile = rng.integers(0, len(plan), count)
    edges = plan.boxes[tile]
    sides = np.exp(rng.uniform(np.log(2), np.log(150 if seed % 2 else 20), (count, 2)))
    centres = rng.uniform(edges[:, :2], edges[:, 2:])
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    boxes = np.concatenate([boxes[:, :2].clip(edges[:, :2]), np.minimum(boxes[:, 2:], edges[:, 2:])], axis=1)
    found = FoundObjects(boxes, rng.permutation(count) / count, rng.integers(0, 2, count))
    assert merge_tiles(plan, tile, found).scores.tolist() == slow(plan, tile, found).tolist()
