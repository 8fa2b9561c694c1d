"""Every shipped YAML file loads, is self-contained when dumped, and holds the published settings."""

from dataclasses import replace
from pathlib import Path

import pytest

from configs.loader import dump_config, load_config, parse_config
from configs.schema import Config
from configs.tree import read_text, read_tree

FOLDER = Path(__file__).parents[2] / "configs"
EXPERIMENTS = sorted(path for path in FOLDER.rglob("*.yaml") if path.parent.name != "fragments")
FRAGMENTS = sorted((FOLDER / "fragments").glob("*.yaml"))


def load(name: str) -> Config:
    return load_config(FOLDER / f"{name}.yaml")


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_it_loads_and_its_dump_reads_back(path: Path) -> None:
    config = load_config(path)
    assert parse_config(dump_config(config), "dump") == config
    assert config.optim.lr_drop_epochs == tuple(sorted(config.optim.lr_drop_epochs))
    assert all(epoch < config.optim.epochs for epoch in config.optim.lr_drop_epochs)


@pytest.mark.parametrize("path", [*EXPERIMENTS, *FRAGMENTS], ids=lambda path: path.stem)
def test_it_starts_with_a_comment(path: Path) -> None:
    assert read_text(path).startswith("# ")


def test_every_fragment_is_included_somewhere() -> None:
    included = set()
    for path in EXPERIMENTS:
        include = read_tree(read_text(path), str(path)).content.get("include")
        included |= {(path.parent / name.content).resolve() for name in (include.content if include else ())}
    assert included == set(FRAGMENTS)


# detector, queries, least queries, processes, batch size, learning rate, epochs, drop
PUBLISHED = {
    "dino_d3q_aitodv2": ("dino", 2000, 300, 2, 1, 1e-4, 24, (20,)),
    "dino_d3q_from_pretrained_aitodv2": ("dino", 2000, 300, 2, 1, 1e-4, 24, (20,)),
    "dino_aitodv2": ("dino", 900, None, 2, 1, 1e-4, 24, (20,)),
    "deformable_detr_d3q_aitodv2": ("deformable_detr", 2000, 100, 1, 4, 2e-4, 50, (40,)),
    "deformable_detr_aitodv2": ("deformable_detr", 300, None, 1, 2, 2e-4, 50, (40,)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str) -> None:
    config = load(name)
    model, optim, data = config.model, config.optim, config.data
    least = model.d3q.min_queries if model.d3q else None
    found = (model.detector, model.num_queries, least, optim.processes, data.batch_size)
    assert (*found, optim.lr, optim.epochs, optim.lr_drop_epochs) == PUBLISHED[name]
    assert (optim.backbone_lr_factor, optim.weight_decay, optim.clip_grad_norm) == (0.1, 1e-4, 0.1)
    assert optim.warmup_steps == 0
    assert (data.image_size, data.crop_size, data.flip_prob, data.drop_empty) == ((800, 800), None, 0.5, True)
    assert (data.vertical_flip_prob, data.brightness) == (0.0, 0.0)
    assert (model.num_classes, model.hidden_dim, model.backbone.frozen_stages) == (8, 256, 1)
    assert config.fidelity.density_merge == "max"
    assert not config.fidelity.mask_denoising_padding
    assert (config.evaluation.protocol, config.evaluation.max_detections) == ("aitod", 1500)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hosts(name: str) -> None:
    model, optim = load(name).model, load(name).optim
    position, stacks = model.position_encoding, (model.encoder, model.decoder)
    assert all((stack.num_layers, stack.num_heads, stack.num_points) == (6, 8, 4) for stack in stacks)
    if model.detector == "dino":
        assert (model.backbone.out_strides, model.neck.num_levels) == ((4, 8, 16, 32), 5)
        assert (position.temperature, position.offset) == (20.0, 0.0)
        assert all((stack.ffn_dim, stack.dropout) == (2048, 0.0) for stack in stacks)
        assert (model.denoising is not None, model.class_agnostic_proposals) == (True, False)
        assert optim.sampling_offsets_lr_factor == 1.0
    else:
        assert (model.backbone.out_strides, model.neck.num_levels) == ((8, 16, 32), 4)
        assert (position.temperature, position.offset) == (10000.0, -0.5)
        assert all((stack.ffn_dim, stack.dropout) == (1024, 0.1) for stack in stacks)
        assert (model.denoising, model.class_agnostic_proposals) == (None, True)
        assert optim.sampling_offsets_lr_factor == 0.1


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_losses(name: str) -> None:
    config = load(name)
    criterion = config.criterion
    decoder, encoder = criterion.decoder, criterion.encoder
    weights = (decoder.classification, decoder.class_cost, decoder.class_weight, encoder.class_weight)
    if config.model.d3q:
        assert (criterion.box_distance, decoder.box_weight) == ("log_size_l1", 0.5)
        assert weights == ("softmax", 1.0, 1.0, 2.0)
    else:
        weight = 1.0 if config.model.detector == "dino" else 2.0
        assert (criterion.box_distance, decoder.box_weight) == ("l1", 5.0)
        assert weights == ("focal", 2.0, weight, weight)
    assert (encoder.classification, encoder.class_cost, encoder.box_weight) == ("focal", 2.0, decoder.box_weight)
    assert decoder.giou_weight == encoder.giou_weight == 2.0
    assert (encoder.alpha, encoder.gamma, decoder.no_object_weight) == (0.25, 2.0, 0.1)


def test_what_sets_single_experiments_apart() -> None:
    def having(key: str, value: object) -> list[str]:
        return [name for name in PUBLISHED if getattr(load(name).criterion, key) == value]

    assert having("encoder_tokens", "selected") == ["dino_aitodv2"]
    assert having("decoder_normalizer", "image") == ["deformable_detr_d3q_aitodv2"]
    assert having("drop_off_centre_matches", True) == ["deformable_detr_aitodv2"]
    assert [name for name in PUBLISHED if load(name).model.query_content == "proposal"] == ["deformable_detr_aitodv2"]
    assert [name for name in PUBLISHED if load(name).init_from] == ["dino_d3q_from_pretrained_aitodv2"]


# classes, (height, width)
OTHER_SETS = {"aitod_v1": (8, (800, 800)), "visdrone": (10, (800, 1333)), "dota_v2": (18, (1024, 1024))}


@pytest.mark.parametrize("name", ["deformable_detr", "deformable_detr_d3q", "dino", "dino_d3q"])
@pytest.mark.parametrize("folder", OTHER_SETS)
def test_other_sets_have_the_published_detectors(folder: str, name: str) -> None:
    config, published = load(f"{folder}/{name}_{folder}"), load(f"{name}_aitodv2")
    assert (config.model.num_classes, config.data.image_size) == OTHER_SETS[folder]
    assert replace(config.model, num_classes=8) == published.model
    assert (config.criterion, config.optim, config.evaluation) == (
        published.criterion,
        published.optim,
        published.evaluation,
    )
    data = {"root": published.data.root, "image_size": (800, 800), "val": published.data.val}
    assert replace(config.data, **data) == published.data


def test_no_two_experiments_share_a_run_folder() -> None:
    assert len({path.stem for path in EXPERIMENTS}) == len(EXPERIMENTS)
