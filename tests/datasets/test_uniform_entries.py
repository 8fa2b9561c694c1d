"""Numbers of entries that are written alike: as a JSON parser reads them, or not at all."""

import json
import random
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from datasets import annotations
from datasets.structures import DataError
from datasets.uniform_entries import read_uniform

WANTED = ("id", "bbox", "area")
PIECES = ["0", "1", "-", ".", "e", "E", "+", " ", ",", "[", "]", "{", "}", '"', ":", "00", "NaN", "null", "é", '"id"']


def as_parsed(text: str) -> dict[str, np.ndarray]:
    """Raises what json.loads and numpy raise where the text is not a list of like entries."""
    entries = json.loads(f"[{text}]")
    return {
        key: np.array([entry[key] for entry in entries]) for key in WANTED if any(key in entry for entry in entries)
    }


def require_same(found: dict[str, np.ndarray], text: str) -> None:
    expected = as_parsed(text)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key].dtype == values.dtype, (key, text)
        assert found[key].tobytes() == values.tobytes(), (key, text)


def number(draw: random.Random) -> str:
    """With up to 20 decimals."""
    whole, decimals = draw.randrange(10 ** draw.randint(1, 9)), draw.randint(1, 20)
    return draw.choice(["", "-"]) + draw.choice([f"{whole}", f"{draw.uniform(0, 1e3):.{decimals}f}"])


def entry(draw: random.Random, separator: str, *, extra: str = "") -> str:
    box = f",{separator}".join(number(draw) for _ in range(4))
    fields = [f'"id":{separator}{draw.randrange(10**6)}', f'"bbox":{separator}[{box}]', f'"area": {number(draw)}']
    return "{" + f",{separator}".join([*fields, *([extra] if extra else [])]) + "}"


@pytest.mark.parametrize("separator", ["", " ", "\n    "])
@pytest.mark.parametrize("extra", ["", '"segmentation": [[1, 2.5], [3]]', '"rle": []'])
def test_the_numbers_are_those_of_a_parser(separator: str, extra: str) -> None:
    draw = random.Random(0)
    for count in (1, 2, 300):
        text = f",{separator}".join(entry(draw, separator, extra=extra) for _ in range(count))
        found = read_uniform(text, WANTED)
        assert found is not None
        require_same(found, text)


def test_whole_numbers_stay_whole_and_signs_stay() -> None:
    entries = [
        '{"id": 123456789012345678, "bbox": [-0.0, -0], "area": -0}',
        '{"id": -7, "bbox": [90071992547409931, 5.0], "area": 3}',
    ]
    text = ", ".join(entries)
    found = read_uniform(text, WANTED)
    assert found is not None
    require_same(found, text)
    assert found["id"].dtype == np.int64


@pytest.mark.parametrize(
    "second",
    [
        '{"id": 2, "bbox": [1, 2], "area": 1e2}',
        '{"id": 2, "bbox": [1, 2], "area": NaN}',
        '{"id": 2, "bbox": [1, 2], "area": 01}',
        '{"id": 2, "bbox": [1, 2], "area": 1.2.3}',
        '{"id": 2, "bbox": [1, 2], "area": 1.}',
        '{"id": 2, "bbox": [1, 2], "area": .5}',
        '{"id": 2, "bbox": [1, 2], "area": --5}',
        '{"id": 2, "bbox": [1, 2], "area": 5-3}',
        '{"id": 2, "bbox": [1, 2], "area": -}',
        '{"id": 2, "bbox": [1, 2], "area": 1234567890123456789}',
        '{"id": 2, "bbox": [1, 2], "area": 1.0000000000000000000000000000000}',
        '{"id": 2, "bbox": [1, 2], "area3": }',
        '{"id": 2, "bbox": [1, ], "3area": 4}',
        '{"id": 2, "bbox": [1, 2, 3], "area": 4}',
        '{"id": 2, "bbox": [1, 2], "area": "4"}',
        '{"id": 2, "area": 4, "bbox": [1, 2]}',
        '{"id": 2, "bbox": [1, 2], "area": 4} ',
        '{"id": 2, "bbox": [1, 2], "area": 4, "name": "x"}',
        "7",
    ],
)
def test_what_is_not_alike_is_left_to_the_parser(second: str) -> None:
    first = '{"id": 1, "bbox": [1, 2], "area": 3}'
    assert read_uniform(f"{first}, {first}", WANTED) is not None
    assert read_uniform(f"{first}, {second}", WANTED) is None


@pytest.mark.parametrize(
    "alone",
    [
        '{"id": 1, "bbox": [[1], [2]]}',
        '{"id": 1, "bbox": []}',
        '{"id": 1, "id": 2}',
        '{"id": 1, "a.b": 2}',
        '{"id": 1, "a": true}',
        '{"id": 1, "a": {"b": 2}}',
        '{"id": 1, "a": "}"}',
        '{"id": 1, "bbox": [1e5, NaN]}',
        "{}",
        "1, 2",
    ],
)
def test_other_values_too(alone: str) -> None:
    assert read_uniform(alone, WANTED) is None


def test_no_damage_goes_unnoticed() -> None:
    """Whatever is written over an entry: the parser's numbers, or none."""
    draw = random.Random(1)
    taken = 0
    for _ in range(3000):
        text = ", ".join(entry(draw, " ") for _ in range(3))
        for _ in range(draw.randint(1, 3)):
            at, length = draw.randrange(len(text)), draw.choice([0, 1, 1, 2])
            text = text[:at] + draw.choice([*PIECES, *map(str, range(10))]) + text[at + length :]
        found: Any = read_uniform(text, WANTED)
        if found is not None:
            require_same(found, text)
            taken += 1
    assert taken > 300


BASE = {"id": 1, "image_id": 1, "category_id": 2, "bbox": [1.5, 2, 3, 4.25], "area": 12.75, "iscrowd": 0}


@pytest.mark.parametrize(
    ("change", "uniform"),
    [
        ({}, True),
        ({"bbox": [1, 2, 3, 4], "area": 12}, True),
        ({"segmentation": [[1, 2, 3.5]]}, True),
        ({"ignore": 1}, True),
        ({"iscrowd": 1}, True),
        ({"id": None}, True),
        ({"area": None}, True),
        ({"iscrowd": None}, True),
        ({"id": 0}, True),
        ({"id": 2}, True),
        ({"category_id": 9}, True),
        ({"image_id": 9}, True),
        ({"image_id": 1.0}, False),
        ({"id": 1.5}, False),
        ({"bbox": [1, 2, 0, 4.5]}, False),
        ({"bbox": [1, 2, -3, 4.5]}, False),
        ({"bbox": [1, 2, 1e9, 4.5]}, False),
        ({"area": -1}, False),
        ({"iscrowd": 2}, False),
        ({"iscrowd": [0]}, False),
        ({"iscrowd": True}, False),
        ({"bbox": [1, 2, 3]}, False),
        ({"bbox": [[1, 2, 3, 4]]}, False),
        ({"note": "x"}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("policy", ["error", "skip"])
def test_a_file_is_the_same_either_way(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    uniform: bool,
    policy: Literal["error", "skip"],
) -> None:
    """A field of None is left out."""
    full = [BASE | {"id": i + 1, "image_id": 1 + i // 5} | change for i in range(9)]
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 50} for i in (1, 2)],
        "categories": [{"id": i, "name": f"class {i}"} for i in (1, 2)],
        "annotations": [{key: value for key, value in entry.items() if value is not None} for entry in full],
    }
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    taken: list[bool] = []
    take_text = annotations._Collector.take_text

    def counted(collector: Any, text: str) -> bool:
        taken.append(take_text(collector, text))
        return taken[-1]

    monkeypatch.setattr(annotations._Collector, "take_text", counted)
    short = outcome(path, policy)
    monkeypatch.setattr(annotations._Collector, "take_text", lambda *_: False)
    assert outcome(path, policy) == short
    assert taken == [uniform]


def outcome(path: Path, policy: Literal["error", "skip"]) -> object:
    """All that a table holds, or the error."""
    try:
        table = annotations.read_annotations(path, on_bad_annotation=policy)
    except DataError as error:
        return str(error)
    arrays = (table.boxes, table.labels, table.areas, table.crowd, table.ignored, table.first_object)
    return [(array.dtype, array.tobytes()) for array in arrays], table.skipped, table.fixed, table.warnings
