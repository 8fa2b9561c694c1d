"""The figures of an analysis add up, and the page is one safe file that can be read in both themes."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engine.analysis.atlas import Atlas, AtlasBuilder
from engine.analysis.causes import CAUSES
from engine.analysis.report import gallery, page
from engine.analysis.report.charts import number_axis
from engine.analysis.report.gallery import Shown, chosen_images, density_layer, encode_thumbnails, gallery_images
from engine.analysis.report.page import embedded, gallery_note, render_page
from engine.analysis.summary import analysis_record
from engine.metrics.average_precision import AITOD, ImageRecord, detection_metrics
from engine.metrics.counting import count_metrics
from tests.engine.analysis import planted
from tests.engine.metrics.test_average_precision import record

NAMES = ["car", "ship", "tree", "</script><b>x"]


def collected(records: Sequence[tuple[ImageRecord, Any]], classes: int) -> tuple[AtlasBuilder, Atlas]:
    builder = AtlasBuilder(num_classes=classes, max_detections=1500, score_threshold=0.3)
    for image, starts in records:
        builder.add(image, starts)
    return builder, builder.finish()


def analysed(records: Sequence[tuple[ImageRecord, Any]], names: Sequence[str] = NAMES) -> dict[str, Any]:
    _, atlas = collected(records, len(names))
    images = [image for image, _ in records]
    counts = [len(image.gt_boxes) for image in images]
    figures = count_metrics(None, [100] * len(images), counts)
    return analysis_record(atlas, detection_metrics(images, len(names), AITOD), names) | {
        "counts": {name: value if np.isfinite(value) else None for name, value in figures.items()},
        "per_image": [{"objects": count, "queries": 100} for count in counts],
        "training": {"loss/class": [(1, 2.0), (2, 1.0)], "mAP": [(2, 0.5)]},
        "published": {"DINO + D3Q": 30.2},
    }


@pytest.fixture(scope="module")
def planted_record() -> dict[str, Any]:
    images = planted.simulate(4, images=3, objects=40, budget=50)
    return analysed([(planted.halved(images[0][0]), images[0][1]), *images[1:]])


def test_causes_add_up_in_every_grouping(planted_record: dict[str, Any]) -> None:
    groups = planted_record["causes"]
    assert groups["all"]["objects"] == planted_record["objects"] == 120
    assert groups["all"]["objects"] - groups["all"]["found"] == planted_record["missed"] > 0
    for key in ("by_class", "by_size", "by_count"):
        for name in groups["all"]:
            assert sum(group[name] for group in groups[key].values()) == groups["all"][name]
    for group in [groups["all"], *groups["by_class"].values()]:
        assert group["objects"] == sum(group[name] for name in ("found", *CAUSES[:5]))


def test_the_confusion_matrix_holds_every_object_once(planted_record: dict[str, Any]) -> None:
    matrix = np.array(planted_record["confusion"])
    assert matrix[:-1].sum() == planted_record["objects"]
    assert np.trace(matrix[:-1, :-1]) == planted_record["objects"] - planted_record["missed"]
    wrong = matrix[:-1, :-1].sum() - np.trace(matrix[:-1, :-1])
    assert matrix[-1].sum() + wrong == planted_record["false_alarms"]


def test_a_permuted_class_lies_beside_the_diagonal() -> None:
    images = planted.changed(planted.simulate(4, images=2), planted.permuted)
    matrix = np.array(analysed(images)["confusion"])
    assert np.trace(matrix[:-1, :-1]) == 0
    assert all(matrix[k, (k + 1) % 4] > 0.9 * matrix[k].sum() for k in range(4))


def test_oracles_are_gains_of_their_own_fault() -> None:
    def gains(images: list[planted.Image]) -> dict[str, float]:
        oracles = analysed(images)["oracles"]
        return {name: oracle["AP50"] - oracles["as detected"]["AP50"] for name, oracle in oracles.items()}

    shifted = gains(planted.changed(planted.simulate(3), planted.shifted))
    assert shifted["boxes"] > 0.8
    assert max(shifted[name] for name in ("counts", "ranking", "classes")) < 0.1
    permuted = gains(planted.changed(planted.simulate(3), planted.permuted))
    assert permuted["classes"] > 0.8
    assert max(permuted[name] for name in ("counts", "ranking", "boxes")) < 0.1
    cut = gains(planted.simulate(3, budget=30))
    assert cut["counts"] > 0.4
    assert max(cut[name] for name in ("ranking", "boxes", "classes")) < 0.1


def test_the_offset_of_planted_shifts() -> None:
    offsets = analysed(planted.changed(planted.simulate(3), planted.shifted))["offsets"]
    assert offsets["centre_median"] == pytest.approx(np.hypot(2, 2), abs=0.1)
    assert offsets["size_median"] == pytest.approx(0, abs=0.1)
    assert np.argmax(offsets["by_pixels"]) == 3
    assert sum(offsets["by_pixels"]) == offsets["objects"]


def test_the_best_threshold_lies_between_right_and_wrong(planted_record: dict[str, Any]) -> None:
    curves = analysed(planted.simulate(3))["curves"]
    assert 0.1 <= curves["best_threshold"] <= 0.36
    assert curves["best_F1"] > 0.95


@pytest.mark.parametrize(
    "records",
    [[], [record()], [record(dets=[((1, 1, 5, 5), 0.9)])], [record(gt=[(1, 1, 5, 5)])]],
    ids=["no images", "nothing at all", "no objects", "no detections"],
)
@pytest.mark.parametrize("names", [["one"], NAMES])
def test_pages_of_nothing(records: list[ImageRecord], names: list[str]) -> None:
    found = analysed([(each, None) for each in records], names)
    json.dumps(found, allow_nan=False)
    html = render_page(found, [], title="t", subtitle="s")
    assert "nan" not in re.sub(r"<style>.*?</style>|<script.*?</script>", "", html, flags=re.DOTALL).lower()


def shown(images: list[planted.Image]) -> list[Shown]:
    builder, _ = collected(images, len(NAMES))
    return [
        Shown(
            image,
            *builder.explain(image, starts),
            starts=starts,
            score_threshold=0.3,
            image=lambda: Image.effect_noise((800, 800), 60),
            name=f"<i>{image.image_id}</i>.png",
            queries=150,
            estimate=70.4,
            density=density_layer(np.eye(40, dtype=np.float32), (1.0, 0.5)),
        )
        for image, starts in images
    ]


def page_of(images: list[planted.Image]) -> str:
    return render_page(analysed(images), gallery_images(shown(images)), title="<u>a</u>.pth", subtitle="s & t")


def test_the_page_refers_to_nothing_outside_of_it() -> None:
    html = page_of(planted.simulate(4, images=2, objects=10))
    assert not re.findall(r"""(?:https?:)?//[\w.]+\.\w+/|@import|url\((?!data:)|<link|<iframe""", html)
    assert set(re.findall(r'href="(.)', html)) == {"#"}
    assert "<script src" not in html
    assert "default-src 'none'" in html
    targets = re.findall(r'href="#([\w-]+)"', html)
    assert all(f'id="{target}"' in html for target in targets)
    assert "$" not in re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)


def test_names_cannot_become_markup() -> None:
    html = page_of(planted.simulate(4, images=2, objects=10))
    assert "</script><b>" not in html
    assert "<u>a</u>" not in html
    assert "<i>1</i>" not in html
    assert html.count("</script>") == 2
    assert json.loads(embedded({"a": "</script>\u2028&"})) == {"a": "</script>\u2028&"}


def test_the_gallery_holds_what_is_counted() -> None:
    images = planted.simulate(4, images=2, objects=20, budget=15)
    found = analysed(images)
    entries = gallery_images(shown(images))
    assert sum(len(each["misses"]) for each in entries) == found["missed"]
    assert sum(len(each["alarms"]) for each in entries) == found["false_alarms"]
    assert sum(len(each["hits"]) for each in entries) == found["objects"] - found["missed"]
    assert {box[5] for each in entries for box in each["misses"]} <= set(CAUSES)
    assert entries[0]["density"] | {"cells": ""} == {"width": 20, "height": 40, "cells": "", "peak": 1.0}


def test_noisy_images_stay_below_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise is what compresses worst; 6 images with a tenth of the limit of 60."""
    monkeypatch.setattr(gallery, "THUMBNAIL_BYTES", gallery.THUMBNAIL_BYTES // 10)
    noise = Image.effect_noise((900, 700), 90).convert("RGB")
    coded = encode_thumbnails([noise.copy] * 6)
    assert sum(len(uri) for uri, _, _ in coded) < (page.LARGEST_BYTES - (1 << 20)) / 10
    assert coded[0][1:] == (900, 700)
    assert coded[0][0].startswith("data:image/webp;base64,")
    assert encode_thumbnails([]) == []


def test_a_large_set_is_sampled_and_says_so() -> None:
    rng = np.random.default_rng(0)
    missed, alarms, errors, objects = rng.integers(0, 100, (4, 20_000))
    chosen = chosen_images(missed, alarms, errors.astype(float), objects, 60)
    assert len(set(chosen)) == len(chosen) == 60
    assert chosen == sorted(chosen)
    assert np.sort(missed)[-20:].tolist() == sorted(missed[chosen])[-20:]
    assert objects[chosen].min() == objects.min()
    assert gallery_note(60, 20_000).startswith("60 of 20,000 images: those with the most misses")
    assert chosen_images(missed[:5], alarms[:5], errors[:5].astype(float), objects[:5], 60) == [0, 1, 2, 3, 4]
    assert chosen_images(missed, alarms, errors.astype(float), objects, 0) == []


@pytest.mark.parametrize("highest", [0.01, 0.3, 1, 7, 99, 150, 23_456])
def test_ticks_are_round_and_reach_the_highest(highest: float) -> None:
    axis = number_axis("x", highest)
    assert axis.low == 0
    assert axis.high >= highest * (1 - 1e-9)
    assert 3 <= len(axis.ticks) <= 8
    assert axis.high <= 2 * highest


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_have_a_contrast_of_at_least_4_5(theme: str) -> None:
    style = (Path(page.__file__).parent / "report.css").read_text()
    blocks = re.findall(r":root(?:\[data-theme=\"dark\"\])? \{(.*?)\}", style, flags=re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[0]))
    if theme == "dark":
        colours |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[1]))
    for text in ("ink", "soft", "accent"):
        for ground in ("page", "panel", "faint"):
            low, high = sorted([luminance(colours[text]), luminance(colours[ground])])
            if (text, ground) != ("accent", "faint"):
                assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)


def test_crowds_and_ties_do_not_disturb_the_sums() -> None:
    image = record(
        gt=[(0, 0, 9, 9), (40, 0, 30, 30)], dets=[((0, 0, 9, 9), 0.5)] * 3 + [((45, 5, 6, 6), 0.5)], crowd=[False, True]
    )
    found = analysed([(image, None), (replace(image, image_id=2), None)], ["one"])
    assert (found["objects"], found["missed"], found["false_alarms"]) == (2, 0, 4)
