"""What layouts are made of: roads with bridges, lots in rows, jetties, houses, trees, scattered singles."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from datasets.synthetic.canvas import Canvas, rotation
from datasets.synthetic.sprites import DIMENSIONS, Colour, ObjectClass, pick, rectangle

_ROOFS: list[Colour] = [(150, 84, 66), (120, 116, 112), (172, 160, 140), (96, 90, 92), (200, 198, 192)]


class Road(NamedTuple):
    """A straight road from start to end, points (2,), both outside the image; width in px."""

    start: np.ndarray
    end: np.ndarray
    width: float


class House(NamedTuple):
    """A house: centre (2,), angle, length and width in px."""

    centre: np.ndarray
    angle: float
    length: float
    width: float


@dataclass
class Site:
    """A canvas with the number of objects it shall hold, its scale, and what has been built on it."""

    canvas: Canvas
    count: int
    scale: float
    roads: list[Road] = field(default_factory=list)
    houses: list[House] = field(default_factory=list)

    @property
    def rng(self) -> np.random.Generator:
        return self.canvas.rng

    @property
    def left(self) -> int:
        """Objects still to be placed."""
        return self.count - len(self.canvas.boxes)

    @property
    def is_crowded(self) -> bool:
        """So many objects that groups must be larger."""
        return self.count >= 300

    @property
    def relative_area(self) -> float:
        """Area in units of a 256-px image."""
        return (self.canvas.size / 256) ** 2

    def place(self, kind: ObjectClass, point: np.ndarray, angle: float, scale: float = 1.0, gap: float = 0.5) -> bool:
        return self.left > 0 and self.canvas.place(
            kind, float(point[0]), float(point[1]), angle, scale=self.scale * scale, gap=gap
        )


def build_road(site: Site, heading: float | None = None) -> Road:
    """Draw a road across the image; where it crosses water within the image, it does so on a bridge."""
    canvas, rng, size = site.canvas, site.rng, site.canvas.size
    heading = rng.uniform(0, np.pi) if heading is None else heading
    along = np.array([math.cos(heading), math.sin(heading)])
    middle = rng.uniform(0.2, 0.8, 2) * size
    vehicle = DIMENSIONS[ObjectClass.VEHICLE]
    width = vehicle.length * vehicle.aspect * site.scale * rng.uniform(3.2, 4.6)
    ends = []
    for direction in (-along, along):
        ahead = np.where(direction > 0, size - middle, middle) / np.maximum(np.abs(direction), 1e-6)
        ends.append(middle + direction * (ahead.min() + width))
    road = Road(ends[0], ends[1], width)
    edge = np.array([-along[1], along[0]]) * width / 2
    level = 88 + int(rng.integers(-14, 15))
    for grow, colour, alpha in ((1.25, (level + 30, level + 26, level + 16), 0.45), (1.0, (level,) * 3, 0.95)):
        outline = np.array([road.start + edge * grow, road.end + edge * grow, road.end - edge * grow])
        outline = np.concatenate([outline, [road.start - edge * grow]])
        canvas.fill(outline, colour, alpha=alpha, grain=4.0, paved=True)
    dashes = np.arange(0, np.linalg.norm(road.end - road.start), 10.0)[:, None] * along + road.start
    canvas.lines(np.stack([dashes, dashes + along * 4], axis=1), (205, 200, 180))
    site.roads.append(road)
    if canvas.has_water:
        _build_bridges(site, road)
        canvas.water &= ~canvas.paved  # what is left of the road is a causeway
    return road


def _build_bridges(site: Site, road: Road) -> None:
    """Repaint the road as a bridge on every stretch of water that begins and ends inside the image."""
    canvas, size = site.canvas, site.canvas.size
    length = float(np.linalg.norm(road.end - road.start))
    along = (road.end - road.start) / length
    points = road.start + np.arange(int(length))[:, None] * along
    points = points[((points >= 0) & (points < size)).all(axis=1)].astype(int)
    wet = canvas.water[points[:, 1], points[:, 0]]
    changes = np.nonzero(np.diff(wet.astype(int)))[0] + 1
    for first, last in pairwise(changes.tolist()):
        span = float(last - first)
        if not wet[first] or not 8 <= span <= 90 or site.left <= 0:
            continue
        middle = (points[first] + points[last]) / 2
        deck = (span + 6.0, road.width * 1.12 / (span + 6.0))
        angle = math.atan2(along[1], along[0])
        canvas.place(ObjectClass.BRIDGE, float(middle[0]), float(middle[1]), angle, size=deck)


def drive_along_roads(site: Site, count: int) -> None:
    """Put vehicles on the roads, keeping to their lane."""
    for _ in range(count * 4 if site.roads else 0):
        if count <= 0 or site.left <= 0:
            return
        road = site.roads[int(site.rng.integers(len(site.roads)))]
        along = (road.end - road.start) / np.linalg.norm(road.end - road.start)
        side = int(site.rng.choice([-1, 1]))
        lane = np.array([-along[1], along[0]]) * side * road.width * 0.24
        point = road.start + (road.end - road.start) * site.rng.random() + lane
        angle = math.atan2(along[1], along[0]) + (np.pi if side > 0 else 0)
        count -= site.place(ObjectClass.VEHICLE, point, angle)


class Rows(NamedTuple):
    """How a lot is laid out. Pitches are in units of the object's length and width, lane is an extra gap every two
    rows in row pitches, fill the share of places taken, elongation the lot's width over its depth."""

    pitch_length: float
    pitch_width: float
    fill: float
    lane: float = 0.0
    elongation: float = 1.6
    ground: Colour | None = None
    slots: bool = False


def build_rows(
    site: Site, kind: ObjectClass, count: int, centre: np.ndarray, angle: float, rows: Rows, scale: float = 1.0
) -> int:
    """A lot of aligned objects around `centre`; returns how many were placed, 0 where the ground is not free."""
    canvas, rng = site.canvas, site.rng
    typical = DIMENSIONS[kind]
    pitch_y = typical.length * site.scale * scale * rows.pitch_length
    pitch_x = typical.length * typical.aspect * site.scale * scale * rows.pitch_width
    places = max(1, int(count / max(rows.fill, 0.1)))
    columns = max(1, round(math.sqrt(places * pitch_y / pitch_x * rows.elongation)))
    steps = np.arange(max(1, math.ceil(places / columns)))
    ys = (steps + (steps // 2) * rows.lane) * pitch_y
    xs = np.arange(columns) * pitch_x
    ys, xs = ys - ys.mean(), xs - xs.mean()
    turn = rotation(angle)
    if rows.ground is not None:
        lot = rectangle(np.ptp(xs) + pitch_x * 1.2 + 2, np.ptp(ys) + pitch_y * 1.2 + 2) @ turn + centre
        band_y, band_x, mask = canvas.window(lot)
        taken = canvas.occupied[band_y, band_x] | canvas.paved[band_y, band_x] | canvas.water[band_y, band_x]
        if (mask & taken).sum() > 0.04 * max(mask.sum(), 1):
            return 0
        canvas.fill(lot, rows.ground, alpha=0.96, grain=4.0, paved=True)
    if rows.slots:
        marks = [
            [(x, y - pitch_y * 0.42), (x, y + pitch_y * 0.42)]
            for y in ys
            for x in [*(xs - pitch_x / 2), xs[-1] + pitch_x / 2]
        ]
        canvas.lines(np.array(marks) @ turn + centre, (170, 170, 168))
    placed = 0
    for y in ys:
        for x in xs:
            if placed < count and rng.random() <= rows.fill:
                point = (np.array([x, y]) + rng.normal(0, 0.04, 2) * pitch_x) @ turn + centre
                heading = angle + np.pi / 2 + (np.pi if rng.random() < 0.5 else 0) + rng.normal(0, 0.03)
                placed += site.place(kind, point, heading, scale=scale, gap=0.0)
    return placed


def build_jetty(site: Site, count: int) -> None:
    """A jetty in the water with ships moored along both sides, where there is room."""
    canvas, rng, scale = site.canvas, site.rng, site.scale
    centre, angle = canvas.free_point(on_water=True), rng.uniform(0, np.pi)
    length, aspect, _ = DIMENSIONS[ObjectClass.SHIP]
    span = length * scale * aspect * 1.35 * count / 2
    turn = rotation(angle)
    band_y, band_x, mask = canvas.window(rectangle(span, 3 * length * scale) @ turn + centre)
    if (mask & (canvas.occupied[band_y, band_x] | ~canvas.water[band_y, band_x])).sum() > 0.25 * mask.sum():
        return
    canvas.fill(rectangle(span + 2, 3.2 * scale) @ turn + centre, (168, 160, 146), grain=3.0)
    for side in (-1, 1):
        offset = np.array([0, side * scale * (length * 0.5 + 2.6)]) @ turn
        berths = Rows(1.0, 1.35, fill=rng.uniform(0.7, 1.0), elongation=1e3)
        build_rows(site, ObjectClass.SHIP, min(count // 2, site.left), centre + offset, angle, berths)


def build_houses(site: Site, count: int) -> None:
    """Houses on free land, all along two directions."""
    canvas, rng = site.canvas, site.rng
    street = rng.uniform(0, np.pi / 2)
    for _ in range(count):
        length, width = rng.uniform(18, 40) * site.scale, rng.uniform(14, 26) * site.scale
        house = House(rng.uniform(0, canvas.size, 2), street + np.pi / 2 * rng.integers(2), length, width)
        turn = rotation(house.angle)
        outline = rectangle(length, width) @ turn + house.centre
        band_y, band_x, mask = canvas.window(outline, outline=True)
        taken = canvas.occupied[band_y, band_x] | canvas.paved[band_y, band_x] | canvas.water[band_y, band_x]
        if (taken & mask).any():
            continue
        canvas.fill(outline + canvas.sun * 4 * site.scale, (20, 20, 24), alpha=0.4)
        roof = pick(rng, _ROOFS)
        canvas.fill(outline, roof, grain=4.0)
        red, green, blue = (int(channel * 0.8) for channel in roof)
        canvas.fill(rectangle(length, width / 2, 0, width / 4) @ turn + house.centre, (red, green, blue), alpha=0.8)
        canvas.occupied[band_y, band_x] |= mask
        site.houses.append(house)


def plant_trees(site: Site, count: int) -> None:
    """Trees in clumps, not on objects, but their crowns may cover the edge of one."""
    canvas, rng = site.canvas, site.rng
    picture = Image.fromarray(canvas.image)
    brush = ImageDraw.Draw(picture, "RGBA")
    clumps = rng.uniform(0, canvas.size, (max(1, count // 8), 2))
    for _ in range(count):
        x, y = (clumps[int(rng.integers(len(clumps)))] + rng.normal(0, 22, 2)).tolist()
        radius = float(rng.uniform(2.2, 7) * site.scale)
        column, row = (int(np.clip(value, 0, canvas.size - 1)) for value in (x, y))
        if canvas.occupied[row, column] or canvas.water[row, column]:
            continue
        dx, dy = (canvas.sun * radius * 0.7).tolist()
        brush.ellipse([x - radius + dx, y - radius + dy, x + radius + dx, y + radius + dy], fill=(10, 14, 10, 90))
        green = int(rng.integers(52, 92))
        brush.ellipse(
            [x - radius, y - radius, x + radius, y + radius], fill=(int(green * 0.62), green, int(green * 0.48), 255)
        )
        for _ in range(5):  # lumps of foliage, brighter towards the sun
            spot_x, spot_y = rng.normal(0, 0.38, 2) * radius
            lit = 1.12 - 0.25 * (spot_x * dx + spot_y * dy) / (radius * radius)
            r = radius * float(rng.uniform(0.22, 0.42))
            colour = (int(green * 0.7 * lit), int(green * 1.1 * lit), int(green * 0.54 * lit), 150)
            brush.ellipse([x + spot_x - r, y + spot_y - r, x + spot_x + r, y + spot_y + r], fill=colour)
    canvas.image[:] = np.asarray(picture)


def scatter(site: Site, kind: ObjectClass, count: int, tries: int = 25) -> None:
    """Objects one by one at random places and angles."""
    on_water = kind == ObjectClass.SHIP if site.canvas.has_water else None
    for _ in range(count * tries):
        if count <= 0 or site.left <= 0:
            return
        count -= site.place(kind, site.canvas.free_point(on_water), site.rng.uniform(0, 2 * np.pi))
