"""Tile plans: every pixel is covered, own regions partition the image, no slivers."""

import numpy as np
import pytest

from engine.prediction.tiles import WIDENING, plan_tiles

SIZES = [(257, 256), (1000, 300), (300, 1000), (511, 2048), (256, 4000), (10_000, 257)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0.0, 0.2, 64, 0.9])
def test_tiles_cover_the_image_and_their_own_regions_partition_it(size: tuple[int, int], overlap: float) -> None:
    width, height = size
    plan = plan_tiles(width, height, tile=(256, 256), overlap=overlap)
    assert len(plan.boxes) == len(plan) == len(plan.own_regions)
    sides = plan.boxes[:, 2:] - plan.boxes[:, :2]
    assert (sides == [min(256, width), min(256, height)]).all(), "a sliver"
    assert plan.boxes.min() == 0
    assert plan.boxes[:, 2].max() == width
    assert plan.boxes[:, 3].max() == height
    own = plan.own_regions
    assert np.prod(own[:, 2:] - own[:, :2], axis=1).sum() == pytest.approx(width * height)

    inside = (own[:, :2] >= plan.boxes[:, :2]) & (own[:, 2:] <= plan.boxes[:, 2:])
    assert inside.all(), "a tile answers for what it does not see"


def test_neighbours_share_at_least_the_overlap() -> None:
    plan = plan_tiles(2000, 1000, tile=(256, 256), overlap=0.2)
    for starts in (plan.columns, plan.rows):
        steps = np.diff(starts)
        assert (steps <= 256 - 51).all()
        assert (steps > 0).all()


def test_own_regions_are_widened_at_seams_only() -> None:
    plan = plan_tiles(500, 256, tile=(256, 256), overlap=16)
    assert plan.columns == [0, 240, 244]
    difference = plan.widened_regions - plan.own_regions
    assert difference[0].tolist() == [0, 0, 4, 0]  # a quarter of 16
    assert difference[1].tolist() == [-4, 0, WIDENING, 0]  # the last tile is shifted: 252 px of overlap
    assert difference[2].tolist() == [-WIDENING, 0, 0, 0]


@pytest.mark.parametrize(
    ("size", "tile", "count"),
    [
        ((256, 256), (256, 256), 1),
        ((300, 200), (300, 200), 1),
        ((200, 300), (300, 200), 1),  # turned, as the resize of an evaluation fits it
        ((301, 200), (300, 200), 2),
        ((10_000, 10_000), None, 1),
    ],
)
def test_an_image_that_fits_stays_whole(size: tuple[int, int], tile: tuple[int, int] | None, count: int) -> None:
    assert len(plan_tiles(*size, tile=tile, overlap=0.2)) == count


def test_an_oblong_tile_is_turned_for_an_upright_image() -> None:
    plan = plan_tiles(500, 2000, tile=(300, 200), overlap=0.0)
    assert (plan.tile_width, plan.tile_height) == (200, 300)


@pytest.mark.parametrize("overlap", [256, 300])
def test_an_overlap_without_a_step_is_refused(overlap: float) -> None:
    with pytest.raises(ValueError, match=rf"overlap {overlap} px is not below the tile's side of 256 px"):
        plan_tiles(1000, 1000, tile=(256, 256), overlap=overlap)
