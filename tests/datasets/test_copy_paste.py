"""Copy-paste: pasted pixels are the objects', nothing annotated is covered, and it depends on nothing but the key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.coco import CocoDetection
from datasets.copy_paste import MARGIN, MOST_PASTED, CopyPaste, build_copy_paste
from datasets.findings import Findings
from datasets.structures import DataError, SampleKey
from datasets.transforms import Sample

SEEDS = range(25)
RARE = 5


def _random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    low = rng.uniform(0, 80, (count, 2))
    return np.concatenate([low, np.minimum(low + rng.uniform(1, 15, (count, 2)), 96)], axis=1)


def _paster(source: Image.Image, boxes: np.ndarray, labels: np.ndarray, annotated: list[np.ndarray]) -> CopyPaste:
    return CopyPaste(
        p=1.0,
        objects={RARE: np.array([1])},
        read=lambda index: source,
        usable=lambda index: (boxes.astype(np.float32), labels),
        annotated=lambda index: annotated[index],
    )


def _paste_of(dataset: CocoDetection, *, p: float) -> CopyPaste:
    paste = build_copy_paste(dataset, p=p, share=1.0, findings=Findings())
    assert paste is not None
    return paste


@pytest.mark.parametrize("seed", SEEDS)
def test_pasted_objects_are_whole_rare_and_cover_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target, source = (Image.fromarray(rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)) for _ in range(2))
    own, theirs = _random_boxes(rng, int(rng.integers(0, 8))), _random_boxes(rng, 30)
    labels = rng.choice([0, RARE], 30)
    crowd = np.array([[20.0, 20, 70, 60]])  # annotated, but no object of the target
    annotated = [np.concatenate([own, crowd]), theirs]
    before = np.array(target)
    sample = Sample(target, torch.from_numpy(own.astype(np.float32)), torch.zeros(len(own), dtype=torch.int64))
    pasted = _paster(source, theirs, labels, annotated)(sample, SampleKey(0, 0), np.random.default_rng(seed))
    assert np.array_equal(np.array(target), before), "the image may be in the cache"
    assert torch.equal(pasted.boxes[: len(own)], sample.boxes)
    new = pasted.boxes[len(own) :].numpy()
    assert len(new) <= MOST_PASTED
    assert pasted.labels[len(own) :].tolist() == [RARE] * len(new)
    after, pixels = np.array(pasted.picture), np.array(source)
    covered = (after != before).any(axis=2)
    for x0, y0, x1, y1 in annotated[0]:
        assert not covered[int(y0) : int(np.ceil(y1)), int(x0) : int(np.ceil(x1))].any()
    assert ((new >= 0) & (new <= 96)).all()  # false for NaN
    for box in new:
        x0, y0, x1, y1 = np.concatenate([np.floor(box[:2]), np.ceil(box[2:])]).astype(int)
        cut = after[y0:y1, x0:x1]
        found = [
            np.array_equal(cut, pixels[int(b[1]) : int(b[1]) + y1 - y0, int(b[0]) : int(b[0]) + x1 - x0])
            for b in theirs[labels == RARE]
        ]
        assert any(found)


def test_an_object_with_another_inside_its_margin_stays() -> None:
    image = Image.new("RGB", (96, 96))
    sample = Sample(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    boxes = np.array([[10.0, 10, 14, 14]])
    for gap, count in ((MARGIN - 1, 0), (MARGIN, 1)):
        neighbour = np.array([[14.0 + gap, 10, 20, 14]])
        paste = _paster(image, boxes, np.array([RARE]), [np.zeros((0, 4)), np.concatenate([boxes, neighbour])])
        assert len(paste(sample, SampleKey(0, 0), np.random.default_rng(0)).boxes) == count


def test_an_image_is_a_function_of_seed_epoch_and_copy(
    open_dataset: Callable[..., CocoDetection], document: dict[str, Any]
) -> None:
    plain, pasting, again = (open_dataset(document) for _ in range(3))
    for dataset in (pasting, again):
        dataset.mixers = (_paste_of(dataset, p=0.5),)
    keys = [SampleKey(epoch, index, copy) for epoch in range(8) for index in range(3) for copy in range(2)]
    changed = []
    first = [pasting[key] for key in keys]
    for key, (image, target) in reversed(list(zip(keys, first, strict=True))):
        image_again, target_again = again[key]
        assert torch.equal(image, image_again)
        assert torch.equal(target.boxes_xyxy, target_again.boxes_xyxy)
        changed.append(len(target.labels) > len(plain[key][1].labels))
    assert any(changed)
    assert not all(changed)


def test_no_rare_class_is_an_error(open_dataset: Callable[..., CocoDetection], document: dict[str, Any]) -> None:
    findings = Findings()
    assert build_copy_paste(open_dataset(document), p=0.5, share=0.01, findings=findings) is None
    with pytest.raises(DataError, match=r"data\.copy_paste_share: no class is in less than 0\.01 .*; raise it, or set"):
        findings.raise_errors()


def test_an_unreadable_source_is_named(open_dataset: Callable[..., CocoDetection], document: dict[str, Any]) -> None:
    dataset = open_dataset(document)
    dataset.mixers = (_paste_of(dataset, p=1.0),)
    sound = dataset.path(1)
    dataset.path(0).write_bytes(b"no image")
    messages = set()
    for epoch in range(20):
        try:
            dataset[SampleKey(epoch, 1)]
        except DataError as error:
            messages.add(str(error))
    assert len(messages) == 1
    assert str(dataset.path(0)) in messages.pop()
    assert sound.read_bytes()[:4] == b"\x89PNG"
