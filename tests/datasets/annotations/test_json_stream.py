"""Reading by blocks gives what json.loads gives, wherever a block happens to end."""

from __future__ import annotations

import gc
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from datasets.annotations import json_stream as json_blocks
from datasets.annotations.json_stream import InvalidJSONError, read_object

ENTRIES = [
    {"id": 1, "bbox": [0.5, -1e-4, 12, 1e300], "note": "}, {"},
    {"id": 2, "parts": [{"a": 1}, {"a": 2}], "shape": {"size": [1, 2]}},
    {},
    {"name": 'å 你好 \U0001f600 "quoted" \\', "none": None, "flags": [True, False]},
]
DOCUMENT = {
    "info": {"year": 2025, "nested": [{"x": 1}, {"y": 2}]},
    "images": [{"id": n} for n in range(9)],
    "numbers": [1, 2.5, -3e-7, 1e5, 12345678, 0, []],
    "empty": [],
    "annotations": ENTRIES * 5,
    "version": 1.5,
    "categories": [{"id": 1, "name": "a"}],
}


def read(path: Path, text: str, *, chunk: int, entries: int, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[Any]]:
    """The value, with the annotations apart."""
    monkeypatch.setattr(json_blocks, "_CHUNK", chunk)
    monkeypatch.setattr(json_blocks, "_ENTRIES", entries)
    path.write_text(text, encoding="utf-8")
    taken: list[Any] = []
    return read_object(path, {"annotations": taken.extend}), taken


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_every_size_of_block_gives_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, indent: int | None, ascii_only: bool
) -> None:
    separators = (",", ":") if indent == 0 else None
    text = json.dumps(DOCUMENT, indent=indent, ensure_ascii=ascii_only, separators=separators)
    for chunk in [*range(1, 60), 200, 500, 10_000]:
        value, taken = read(tmp_path / "a.json", text, chunk=chunk, entries=3, monkeypatch=monkeypatch)
        assert taken == DOCUMENT["annotations"], chunk
        assert value == DOCUMENT | {"annotations": []}, chunk
        assert list(value) == list(DOCUMENT)


def test_values_of_other_types_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ([1, [2]], {}, "text", 1.5e7, None, {"annotations": {"a": 1}}):
        found = read(tmp_path / "a.json", f" {json.dumps(value)}\n", chunk=2, entries=2, monkeypatch=monkeypatch)
        assert found == (value, [])


def problem_of(text: str) -> json.JSONDecodeError | None:
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        return error
    return None


def test_faults_are_placed_as_by_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(DOCUMENT, indent=1, ensure_ascii=False)
    rng = random.Random(0)
    compared = 0
    for _ in range(300):
        position = rng.randrange(len(text))
        spoilt = text[:position] + rng.choice(["", "", "}", "]", "{", "[", ",", ":", "x", "\n"]) + text[position + 1 :]
        chunk = rng.choice([1, 17, 100, 10_000])
        problem = problem_of(spoilt)
        if problem is None:
            value, taken = read(tmp_path / "a.json", spoilt, chunk=chunk, entries=3, monkeypatch=monkeypatch)
            assert value | ({"annotations": taken} if "annotations" in value else {}) == json.loads(spoilt)
            continue
        with pytest.raises(InvalidJSONError) as caught:
            read(tmp_path / "a.json", spoilt, chunk=chunk, entries=3, monkeypatch=monkeypatch)
        # Newer versions of json point at the comma where one is followed by nothing.
        place = f"line {problem.lineno}, column {problem.colno}: "
        assert str(caught.value).startswith(place) or "trailing comma" in problem.msg, spoilt
        compared += 1
    assert compared > 50


def test_a_cut_file_is_an_error_wherever_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(DOCUMENT)
    for length in range(0, len(text), 7):
        with pytest.raises(InvalidJSONError, match=r"^line 1, column \d+: "):
            read(tmp_path / "a.json", text[:length], chunk=64, entries=3, monkeypatch=monkeypatch)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": [1], "a": [2]}', "'a' appears twice"),
        ('{"a": 1} {', "Extra data"),
        ('{"a" 1}', "Expecting ':' delimiter"),
        ("{1: 2}", "property name"),
        ('{"a": [{}, {}}', "Expecting ',' delimiter"),
    ],
)
def test_faults_between_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    with pytest.raises(InvalidJSONError, match=re.escape(words)):
        read(tmp_path / "a.json", text, chunk=64, entries=3, monkeypatch=monkeypatch)
    assert gc.isenabled()
