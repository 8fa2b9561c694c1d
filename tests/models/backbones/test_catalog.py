"""The catalogue of backbones: its names, its rules and where their errors point, and that every entry can be built."""

from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from configs.loader import ConfigError, load_config
from configs.schema import BackboneConfig
from engine.commands.resolve import RULES
from models.backbones.backbone import Backbone, build_backbone
from models.backbones.catalog import CATALOG
from tests.support.tiny_run import CONFIG


def test_the_schema_names_the_catalogue() -> None:
    assert get_args(get_type_hints(BackboneConfig)["name"]) == tuple(CATALOG)


@pytest.mark.parametrize("name", CATALOG)
def test_every_entry_returns_each_of_its_strides(name: str) -> None:
    for stride in CATALOG[name].strides:
        width = 8 if CATALOG[name].has_base_width else 64
        backbone = build_backbone(
            name=name, out_strides=[stride], base_width=width, frozen_batch_norm=True, frozen_stages=-1
        )
        assert isinstance(backbone, Backbone)
        assert (backbone.out_strides, len(backbone.out_channels)) == ((stride,), 1)


LITE = ["model.backbone.name=efficientnet_lite0", "model.backbone.base_width=64", "model.backbone.out_strides=[2, 4]"]


@pytest.mark.parametrize(
    ("overrides", "error"),
    [
        (["model.backbone.out_strides=[2, 4]"], r"--set K\.out_strides: K\.out_strides: .* 4, 8, 16, 32; got \[2, 4\]"),
        (["model.backbone.out_strides=[4, 12]"], r"--set K\.out_strides: K\.out_strides: .*got \[4, 12\]"),
        (
            [*LITE, "model.backbone.out_strides=[2, 64]"],
            r"--set K\.out_strides: K\.out_strides: .* 2, 4, 8, 16, 32; got",
        ),
        (
            [*LITE, "model.backbone.base_width=32"],
            r"--set K\.base_width: K\.base_width: .*no base width; remove the key",
        ),
        (LITE[:1], r"x\.yaml:7: K\.base_width: .*no base width"),  # of the file, unsuited to the new name
        (["model.backbone.out_strides=[2]", "optim.lr=0"], r"(?s)K\.out_strides: .*optim\.lr: "),  # with all others
    ],
)
def test_a_value_that_the_entry_does_not_allow_is_refused_at_its_key(
    tmp_path: Path, overrides: list[str], error: str
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(CONFIG)
    with pytest.raises(ConfigError, match=error.replace("K", r"model\.backbone")):
        load_config(file, overrides, RULES)
    assert load_config(file, LITE, RULES).model.backbone.out_strides == (2, 4)


def test_a_backbone_built_without_a_config_keeps_the_rules() -> None:
    with pytest.raises(ValueError, match=r"^out_strides: resnet18 has strides 4, 8, 16, 32; got \[2, 4\]$"):
        build_backbone(name="resnet18", out_strides=[2, 4], base_width=8, frozen_batch_norm=True, frozen_stages=0)
