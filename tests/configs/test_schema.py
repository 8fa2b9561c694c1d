"""The schema: every key documented, defaults valid, ranges refused at the key that is wrong."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from configs.describe import describe_schema, field_docs
from configs.loader import ConfigError, parse_config, schema_keys
from configs.schema import Config

ROOT = Path(__file__).parents[2]

TEXT = """\
model:
  detector: dino
  num_classes: 8
  backbone: {name: resnet50}
criterion:
  box_distance: l1
  decoder: {classification: focal, class_cost: 2, class_weight: 1, box_weight: 5}
  encoder: {classification: focal, class_cost: 2, class_weight: 1, box_weight: 5}
data:
  root: data
  train: {annotations: train.json, images: train}
  val: {annotations: val.json, images: val}
"""


def blocks(schema: Any) -> Iterator[Any]:
    yield schema
    for hint in get_type_hints(schema).values():
        for option in (hint, *get_args(hint)):
            if is_dataclass(option):
                yield from blocks(option)


@pytest.mark.parametrize("block", dict.fromkeys(blocks(Config)), ids=lambda block: block.__name__)
def test_every_block_is_frozen_and_every_key_documented(block: Any) -> None:
    assert block.__dataclass_params__.frozen
    assert block.__doc__
    assert list(field_docs(block)) == [field.name for field in fields(block)]
    assert all(doc.endswith(".") for doc in field_docs(block).values())


def test_the_reference_is_up_to_date() -> None:
    text = (ROOT / "docs" / "config.md").read_text()
    assert text == describe_schema(), "run: python -m configs.describe > docs/config.md"
    assert all(f"`{key.rpartition('.')[2]}`" in text for key in schema_keys(Config))


def test_the_smallest_config_is_valid() -> None:
    config = parse_config(TEXT, "x.yaml")
    assert config.model.num_queries == 900
    assert config.model.d3q is None
    hash(config)


def test_corrected_scores_need_a_softmax_and_a_background_with_weight() -> None:
    """A config without the key, such as that of an earlier checkpoint, means published scores."""
    assert parse_config(TEXT, "x.yaml").evaluation.scores == "published"
    with pytest.raises(ConfigError, match=r"evaluation.scores: corrected needs .*classification: softmax.*published"):
        parse_config(TEXT, "x.yaml", ["evaluation.scores=corrected"])
    softmax = ["evaluation.scores=corrected", "criterion.decoder.classification=softmax"]
    assert parse_config(TEXT, "x.yaml", softmax).evaluation.scores == "corrected"
    with pytest.raises(ConfigError, match=r"evaluation.scores: corrected divides by .*no_object_weight.*published"):
        parse_config(TEXT, "x.yaml", [*softmax, "criterion.decoder.no_object_weight=0"])


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("model.num_classes=0", "model.num_classes"),
        ("model.hidden_dim=250", "model.hidden_dim"),
        ("model.encoder.num_heads=7", "model.encoder.num_heads"),
        ("model.decoder.num_heads=7", "model.decoder.num_heads"),
        ("model.decoder.num_points=0", "model.decoder.num_points"),
        ("model.encoder.dropout=1", "model.encoder.dropout"),
        ("model.encoder.dropout=-0.1", "model.encoder.dropout"),
        ("model.neck.num_groups=7", "model.neck.num_groups"),
        ("model.neck.num_levels=3", "model.neck.num_levels"),
        ("model.neck.bias=1", "model.neck.bias"),
        ("model.num_queries=-1", "model.num_queries"),
        ("model.query_content=proposal", "model.query_content"),
        ("model.backbone.out_strides=[]", "model.backbone.out_strides"),
        ("model.backbone.out_strides=[8, 4]", "model.backbone.out_strides"),
        ("model.backbone.out_strides=[4, 4]", "model.backbone.out_strides"),
        ("model.backbone.out_strides=[0, 4]", "model.backbone.out_strides"),
        ("model.backbone.frozen_stages=5", "model.backbone.frozen_stages"),
        ("model.backbone.base_width=0", "model.backbone.base_width"),
        ("model.position_encoding.temperature=0", "model.position_encoding.temperature"),
        ("model.denoising.num_queries=0", "model.denoising.num_queries"),
        ("model.denoising.label_noise=1.5", "model.denoising.label_noise"),
        ("model.denoising.box_noise=-1", "model.denoising.box_noise"),
        ("model.d3q.queries_per_object=0", "model.d3q.queries_per_object"),
        ("model.d3q.min_queries=0", "model.d3q.min_queries"),
        ("model.d3q.min_queries=901", "model.d3q.min_queries"),
        ("model.d3q.max_queries=901", "model.d3q.max_queries"),
        ("model.d3q.max_queries=200", "model.d3q.max_queries"),
        ("model.d3q.initial_density=1", "model.d3q.initial_density"),
        ("model.d3q.initial_density=0", "model.d3q.initial_density"),
        ("criterion.decoder.box_weight=-1", "criterion.decoder.box_weight"),
        ("criterion.decoder.alpha=1.5", "criterion.decoder.alpha"),
        ("criterion.encoder.classification=softmax", "criterion.encoder.classification"),
        ("criterion.density_weight=-1", "criterion.density_weight"),
        ("criterion.count_weight=-1", "criterion.count_weight"),
        ("data.image_size=[800, 8]", "data.image_size"),
        ("data.crop_size=[8, 800]", "data.crop_size"),
        ("data.flip_prob=2", "data.flip_prob"),
        ("data.vertical_flip_prob=-1", "data.vertical_flip_prob"),
        ("data.rotate_prob=1.1", "data.rotate_prob"),
        ("data.copy_paste_prob=1.1", "data.copy_paste_prob"),
        ("data.copy_paste_share=-0.1", "data.copy_paste_share"),
        ("data.mosaic_prob=2", "data.mosaic_prob"),
        ("data.mosaic_epochs=0", "data.mosaic_epochs"),
        ("data.keep_empty_crops=-1", "data.keep_empty_crops"),
        ("data.keep_empty_crops=0.5", "data.keep_empty_crops"),  # without random crops
        ("data.scale_jitter=[1.5, 0.5]", "data.scale_jitter"),
        ("data.scale_jitter=[0, 1]", "data.scale_jitter"),
        ("data.bands=[0, 1, 2]", "data.bands"),
        ("data.stretch=3", "data.stretch"),
        ("data.stretch=5,2", "data.stretch"),
        ("data.stretch=all", "data.stretch"),
        ("data.brightness=-1", "data.brightness"),
        ("data.batch_size=0", "data.batch_size"),
        ("data.num_workers=-1", "data.num_workers"),
        ("data.mean=[0.5, 0.5, 0.5]", "data.std"),
        ("optim.lr=0", "optim.lr"),
        ("optim.epochs=0", "optim.epochs"),
        ("optim.weight_decay=-1e-4", "optim.weight_decay"),
        ("optim.clip_grad_norm=-1", "optim.clip_grad_norm"),
        ("optim.lr_drop_epochs=[0]", "optim.lr_drop_epochs"),
        ("optim.processes=0", "optim.processes"),
        ("evaluation.max_detections=0", "evaluation.max_detections"),
        ("evaluation.every_epochs=0", "evaluation.every_epochs"),
        ("evaluation.gallery_score=2", "evaluation.gallery_score"),
        ("runtime.seed=-1", "runtime.seed"),
        ("runtime.log_every=0", "runtime.log_every"),
        ("runtime.query_bucket=0", "runtime.query_bucket"),
        ("runtime.query_bucket=7", "runtime.query_bucket"),
        ("reset_head=true", "reset_head"),
        ("reset_head=by_name", "reset_head"),
        ("reset_head=by_class", "reset_head"),
    ],
)
def test_values_out_of_range_are_refused_at_their_key(override: str, path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(TEXT, "x.yaml", [override])
    (found,) = caught.value.problems
    assert f": {path}: " in found
    assert found.startswith(("--set ", "x.yaml:"))


def test_conditions_on_two_keys() -> None:
    refused = ["model.detector=deformable_detr", "model.denoising.num_queries=5"]
    with pytest.raises(ConfigError, match=r"model\.denoising: only dino has denoising queries"):
        parse_config(TEXT, "x.yaml", refused)
    with pytest.raises(ConfigError, match=r"data\.std: must be > 0"):
        parse_config(TEXT, "x.yaml", ["data.mean=[0, 0, 0]", "data.std=[1, 0, 1]"])


def test_a_range_error_of_a_default_names_the_nearest_line() -> None:
    text = TEXT.replace("  num_classes: 8", "  num_classes: 8\n  hidden_dim: 36")
    with pytest.raises(ConfigError, match=r"^x\.yaml:1: model\.encoder\.num_heads: 8 does not divide hidden_dim 36"):
        parse_config(text, "x.yaml")
