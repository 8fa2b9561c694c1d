"""The kinds of scenes: each prepares its ground, then adds groups of objects until there are enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from datasets.synthetic.canvas import Canvas, rotation
from datasets.synthetic.elements import (
    Rows,
    Site,
    build_houses,
    build_jetty,
    build_road,
    build_rows,
    drive_along_roads,
    plant_trees,
    scatter,
)
from datasets.synthetic.sprites import ObjectClass
from datasets.synthetic.terrain import DRY_LAND, coast, flood, land, river


class Layout(NamedTuple):
    """One kind of scene.

    share        how often it is drawn, relative to the others
    count_shift  added to the mean log count: parking lots are full, wind farms are not
    main         class of the singles that make up what the groups left open
    add_group    adds one group of at most `count` objects
    roads        least and most number of roads
    houses       houses per 256 x 256 px, most
    water        "coast" | "river" | "maybe" (either, seldom) | "none"
    """

    share: float
    count_shift: float
    main: ObjectClass
    add_group: Callable[[Site, int], None]
    roads: tuple[int, int] = (0, 0)
    houses: int = 0
    water: str = "none"
    dry: bool = False


def _parking(site: Site, count: int) -> None:
    rng = site.rng
    drive_along_roads(site, min(3, site.left))
    level, angle = int(rng.integers(70, 110)), rng.uniform(0, np.pi)
    rows = Rows(1.12, 1.30, fill=rng.uniform(0.6, 0.98), lane=0.9, ground=(level, level, level + 3), slots=True)
    for _ in range(12):
        centre = site.canvas.free_point(on_water=False)
        count = min(count, site.left)
        if count <= 0 or build_rows(site, ObjectClass.VEHICLE, count, centre, angle, rows):
            return
        count = max(3, int(count * 0.85))


def _harbour(site: Site, count: int) -> None:
    rng = site.rng
    if site.left > 6 and rng.random() < 0.75:
        build_jetty(site, min(site.left, int(rng.integers(6, 40)) * (3 if site.is_crowded else 1)))
    else:
        scatter(site, ObjectClass.SHIP, min(3, site.left))


def _road(site: Site, count: int) -> None:
    drive_along_roads(site, count)
    scatter(site, ObjectClass.VEHICLE, 1)


def _river(site: Site, count: int) -> None:
    drive_along_roads(site, count)
    scatter(site, ObjectClass.SHIP, 1 + count // 8, tries=8)
    scatter(site, ObjectClass.SWIMMING_POOL, 1)


def _tanks(site: Site, count: int) -> None:
    rng, count = site.rng, min(count, 40)
    for _ in range(8):
        rows = Rows(1.45, 1.45, fill=rng.uniform(0.7, 1.0), ground=(150, 142, 126))
        centre, angle = site.canvas.free_point(on_water=False), rng.uniform(0, np.pi)
        scale = rng.uniform(0.6, 1.4)
        if build_rows(site, ObjectClass.STORAGE_TANK, min(count, site.left), centre, angle, rows, scale):
            return
        count = max(2, int(count * 0.7))


def _airport(site: Site, count: int) -> None:
    rng, count = site.rng, min(count, 14)
    for _ in range(8):
        rows = Rows(1.35, 1.3, fill=rng.uniform(0.6, 1.0), ground=(138, 138, 134), elongation=4.0)
        centre, angle = site.canvas.free_point(on_water=False), rng.uniform(0, np.pi)
        scale = rng.uniform(0.8, 1.4)
        if build_rows(site, ObjectClass.AIRPLANE, min(count, site.left), centre, angle, rows, scale):
            return
        count = max(1, count // 2)


def _suburb(site: Site, count: int) -> None:
    rng = site.rng
    for house in site.houses:
        turn = rotation(house.angle)
        if rng.random() < 0.6:
            garden = np.array([0, house.width * 0.5 + 8 * site.scale]) @ turn + house.centre
            site.place(ObjectClass.SWIMMING_POOL, garden, house.angle + rng.normal(0, 0.2))
        if rng.random() < 0.5:
            drive = np.array([house.length * 0.5 + 8 * site.scale, 0]) @ turn + house.centre
            site.place(ObjectClass.VEHICLE, drive, house.angle + np.pi / 2)
    drive_along_roads(site, min(4, site.left))
    scatter(site, ObjectClass.SWIMMING_POOL, 1)


def _crowd(site: Site, count: int) -> None:
    rng = site.rng
    centre, spread = site.canvas.free_point(on_water=False), rng.uniform(8, 40) * (3 if site.is_crowded else 1)
    for _ in range(count * 2):
        site.place(ObjectClass.PERSON, rng.normal(centre, spread), rng.uniform(0, 2 * np.pi))


def _wind_farm(site: Site, count: int) -> None:
    scatter(site, ObjectClass.WIND_MILL, min(count, 4))
    drive_along_roads(site, 1)


def _mixed(site: Site, count: int) -> None:
    kinds = {
        ObjectClass.VEHICLE: 0.34,
        ObjectClass.PERSON: 0.17,
        ObjectClass.STORAGE_TANK: 0.14,
        ObjectClass.SWIMMING_POOL: 0.14,
        ObjectClass.SHIP: 0.12,
        ObjectClass.AIRPLANE: 0.09,
    }
    kind = list(kinds)[site.rng.choice(len(kinds), p=list(kinds.values()))]
    if kind == ObjectClass.SHIP and not site.canvas.has_water:
        kind = ObjectClass.VEHICLE
    scatter(site, kind, int(site.rng.integers(1, 9)))


_VEHICLE = ObjectClass.VEHICLE
LAYOUTS = {
    "parking": Layout(0.15, 1.0, _VEHICLE, _parking, roads=(1, 1), houses=6, dry=True),
    "harbour": Layout(0.13, 0.5, ObjectClass.SHIP, _harbour, water="coast"),
    "road": Layout(0.11, -0.1, _VEHICLE, _road, roads=(1, 3), houses=6, water="maybe"),
    "river": Layout(0.12, 0.0, _VEHICLE, _river, roads=(2, 4), houses=5, water="river"),
    "tanks": Layout(0.09, -0.3, ObjectClass.STORAGE_TANK, _tanks, dry=True),
    "airport": Layout(0.08, -0.8, ObjectClass.AIRPLANE, _airport, dry=True),
    "suburb": Layout(0.10, -0.8, _VEHICLE, _suburb, roads=(1, 2), houses=20, water="maybe"),
    "crowd": Layout(0.09, 0.8, ObjectClass.PERSON, _crowd, dry=True),
    "wind-farm": Layout(0.06, -0.8, _VEHICLE, _wind_farm, roads=(1, 1), water="maybe"),
    "mixed": Layout(0.07, 0.2, _VEHICLE, _mixed, roads=(1, 1), houses=6, water="maybe"),
}


def build(layout: Layout, rng: np.random.Generator, *, size: int, count: int, scale: float) -> Canvas:
    """Draw one scene of `size` px with at most `count` objects; fewer where there is no room for them."""
    ground = land(rng, size, DRY_LAND) if layout.dry else land(rng, size)
    distance = _shape_water(layout.water, rng, size, scale)
    water = np.zeros((size, size), bool) if distance is None else distance > 0
    site = Site(Canvas(rng, ground if distance is None else flood(rng, ground, distance), water), count, scale)
    heading = rng.uniform(0, np.pi)
    for number in range(int(rng.integers(layout.roads[0], layout.roads[1] + 1))):
        build_road(site, heading + (number % 2) * np.pi / 2 + rng.normal(0, 0.15))
    if layout.houses and rng.random() < 0.9:
        build_houses(site, int(rng.integers(2, layout.houses + 1) * site.relative_area))
    for step in range(160 if site.is_crowded else 60):
        before = site.left
        if before <= 0:
            break
        group = int(rng.integers(4, 60)) * (6 if site.is_crowded else 1)
        layout.add_group(site, min(group, before))
        if site.left == before and step > 20:
            break
    scatter(site, layout.main, max(site.left, 0), tries=4)
    plant_trees(site, int(rng.integers(4, 30) * site.relative_area))
    return site.canvas


def _shape_water(water: str, rng: np.random.Generator, size: int, scale: float) -> np.ndarray | None:
    if water == "maybe":
        water = str(rng.choice(["coast", "river", "none"], p=[0.15, 0.2, 0.65]))
        level = 0.22
    else:
        level = -0.28
    if water == "coast":
        return coast(rng, size, level)
    if water == "river":
        return river(rng, size, width=rng.uniform(14, 34) * scale)
    return None
