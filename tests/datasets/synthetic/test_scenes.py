"""Procedural scenes: a function of their index, with boxes that fit what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.synthetic.canvas import MIN_SIDE, Canvas, extent
from datasets.synthetic.scene import KINDS, CountDistribution, make_scene
from datasets.synthetic.sprites import CLASS_NAMES, ObjectClass

FEW = CountDistribution(max_count=60)


def test_classes_are_aitods_in_its_order() -> None:
    expected = "airplane bridge storage-tank ship swimming-pool vehicle person wind-mill"
    assert " ".join(CLASS_NAMES) == expected


def test_a_scene_depends_on_its_index_alone() -> None:
    first = make_scene(index=3, size=96, seed=1, counts=FEW)
    make_scene(index=9, size=96, seed=1, counts=FEW)
    again = make_scene(index=3, size=96, seed=1, counts=FEW)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)
    for index, seed in ((4, 1), (3, 2)):
        assert not np.array_equal(first.image, make_scene(index=index, size=96, seed=seed, counts=FEW).image)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_valid(kind: str) -> None:
    for index in range(3):
        scene = make_scene(index=index, size=128, kind=kind, counts=FEW)
        assert scene.kind == kind
        assert (scene.image.shape, scene.image.dtype) == ((128, 128, 3), np.uint8)
        assert (scene.boxes.dtype, scene.labels.dtype) == (np.float32, np.int64)
        assert scene.boxes.shape == (len(scene.labels), 4)
        assert len(scene.labels) <= FEW.max_count
        assert ((scene.labels >= 0) & (scene.labels < len(CLASS_NAMES))).all()
        assert scene.boxes.min(initial=0) >= 0
        assert scene.boxes.max(initial=0) <= 128
        assert (scene.boxes[:, 2:] - scene.boxes[:, :2]).min(initial=MIN_SIDE) >= MIN_SIDE - 1e-4


@pytest.mark.parametrize("kind", ["parking", "harbour", "crowd"])
def test_dense_scenes_reach_their_count(kind: str) -> None:
    counts = CountDistribution(min_count=150, max_count=150)
    assert len(make_scene(index=0, size=256, kind=kind, counts=counts).labels) >= 120


def test_bridges_are_not_rare() -> None:
    scenes = [make_scene(index=index, size=128, kind="river", counts=FEW) for index in range(10)]
    with_bridge = [bool((scene.labels == ObjectClass.BRIDGE).any()) for scene in scenes]
    assert sum(with_bridge) >= 6


@pytest.mark.parametrize("kind", list(ObjectClass))
@pytest.mark.parametrize("where", [(40.3, 41.7), (2.0, 40.0), (78.5, 79.0)])
def test_the_box_is_what_was_drawn(kind: ObjectClass, where: tuple[float, float]) -> None:
    """Without a shadow, the changed pixels span the box; where the image cuts the object too."""
    for angle in (0.0, 0.7, 1.9, 4.0):
        ground = np.full((80, 80, 3), 7, np.float32)
        wet = np.full((80, 80), kind == ObjectClass.SHIP)
        canvas = Canvas(np.random.default_rng(1), ground, wet)
        canvas.shadow_strength = 0.0
        if not canvas.place(kind, *where, angle, scale=0.9):
            assert not canvas.boxes
            assert (canvas.image == 7).all()
            continue
        rows, columns = np.nonzero((canvas.image != 7).any(axis=2))
        drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert canvas.boxes[0] == pytest.approx(drawn, abs=1.3)
        assert canvas.labels == [int(kind)]


def test_objects_do_not_overlap() -> None:
    canvas = Canvas(np.random.default_rng(0), np.zeros((64, 64, 3), np.float32), np.zeros((64, 64), bool))
    assert canvas.place(ObjectClass.VEHICLE, 30, 30, 0.0)
    assert not canvas.place(ObjectClass.VEHICLE, 34, 30, 1.0)
    assert not canvas.place(ObjectClass.SHIP, 10, 10, 0.0)  # no water
    assert not canvas.place(ObjectClass.VEHICLE, -3, 10, 0.0)
    assert len(canvas.boxes) == 1


def test_extent_of_the_visible_part() -> None:
    triangle = np.array([[-10.0, 5], [10, 5], [10, 25]])
    assert extent(triangle, 64) == pytest.approx((0, 5, 10, 25))
    assert extent(triangle, 15) == pytest.approx((0, 5, 10, 15))
    assert extent(triangle + 100, 64) is None


def test_counts_follow_their_distribution() -> None:
    rng = np.random.default_rng(0)
    counts = CountDistribution(min_count=3, max_count=500, mu=3.0, sigma=1.0)
    drawn = np.array([counts.draw(rng) for _ in range(4000)])
    assert (drawn.min(), drawn.max() <= 500) == (3, True)
    assert np.median(drawn) == pytest.approx(np.exp(3), rel=0.1)
    assert CountDistribution(mu=900.0).draw(rng) == 2000
    assert {CountDistribution(min_count=9, max_count=9).draw(rng) for _ in range(20)} == {9}


@pytest.mark.parametrize("options", [{"min_count": 0}, {"max_count": 0}, {"sigma": -1.0}, {"mu": float("nan")}])
def test_impossible_distributions(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"counts|mu"):
        CountDistribution(**options)  # type: ignore[arg-type]


def test_impossible_scenes() -> None:
    with pytest.raises(ValueError, match="kind 'moon' is none of parking"):
        make_scene(index=0, kind="moon")
    with pytest.raises(ValueError, match="size 32"):
        make_scene(index=0, size=32)
