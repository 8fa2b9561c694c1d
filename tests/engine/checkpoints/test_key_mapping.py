"""Names of other projects' tensors: the published full-size models fit exactly, and come back bit for bit."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from configs.loader import load_config
from engine.checkpoints.checkpoint import Loaded, load_weights
from engine.checkpoints.key_mapping import Naming, mmdetection_naming, original_naming, to_mmdetection, translate
from models.attention import LayerSizes, QueryBlocks
from models.build import build_detector
from models.decoder import DecoderLayer
from models.neck import Neck
from models.structures import FeatureTokens, Memory
from tests.support.original_detectors import original_state
from tests.support.shrunken import CONFIGS, small_config

PARAMS = Path(__file__).parents[2] / "data" / "params"
# list of published tensors -> config, number of tensors
PUBLISHED = {
    "dino_d3q": ("dino_d3q_aitodv2", 634),
    "dino_base": ("dino_aitodv2", 630),
    "deformable_d3q": ("deformable_detr_d3q_aitodv2", 628),
    "deformable_base": ("deformable_detr_aitodv2", 623),
}
BATCH_NORMS = 53  # of a ResNet-50


def published_shapes(name: str) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for line in (PARAMS / f"params_{name}.txt").read_text().splitlines():
        if not line.startswith("#"):
            tensor, shape, *_ = line.split("\t")
            shapes[tensor] = tuple(int(size) for size in re.findall(r"\d+", shape))
    return shapes


def mmdetection_of(config_name: str) -> Naming:
    model = load_config(CONFIGS / f"{config_name}.yaml").model
    return mmdetection_naming(detector=model.detector, num_layers=model.decoder.num_layers)


def original_of(config: object) -> Naming:
    model = config.model
    return original_naming(
        detector=model.detector,
        num_layers=model.decoder.num_layers,
        num_maps=len(model.backbone.out_strides),
        num_levels=model.neck.num_levels,
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tensors_are_exactly_those_of_the_detector(name: str) -> None:
    config_name, number = PUBLISHED[name]
    shapes = published_shapes(name)
    assert len(shapes) == number
    with torch.device("meta"):
        own = build_detector(load_config(CONFIGS / f"{config_name}.yaml")).state_dict()
        published = {tensor: torch.empty(shape) for tensor, shape in shapes.items()}
    translated = translate(published, mmdetection_of(config_name), own)
    assert {key: value.shape for key, value in translated.state.items()} == {k: v.shape for k, v in own.items()}
    (counters,) = translated.skipped.values()
    assert len(counters) == BATCH_NORMS
    assert len(own) + BATCH_NORMS == number


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_tensors_come_back_bit_for_bit(name: str) -> None:
    config_name, _ = PUBLISHED[name]
    torch.manual_seed(0)
    published = {
        tensor: torch.zeros((), dtype=torch.int64) if tensor.endswith("num_batches_tracked") else torch.randn(shape)
        for tensor, shape in published_shapes(name).items()
    }
    naming = mmdetection_of(config_name)
    detector = build_detector(load_config(CONFIGS / f"{config_name}.yaml"))
    translated = translate(published, naming, detector.state_dict())
    assert load_weights(detector, translated.state, source=name) == Loaded()
    back = to_mmdetection(detector.state_dict(), naming)
    assert back.keys() == published.keys()
    for tensor, value in published.items():
        assert back[tensor].dtype == value.dtype, tensor
        assert torch.equal(back[tensor], value), tensor


def test_a_name_that_the_detectors_do_not_have_is_a_key_error() -> None:
    naming = mmdetection_naming(detector="dino", num_layers=6)
    for name in ("reference_points.weight", "neck.convs.0.bn.weight", "xlevel_embed", "level_embed.weight"):
        with pytest.raises(KeyError):
            naming.to_here(name)
    with pytest.raises(KeyError):
        naming.from_here("level_embed")
    assert naming.to_here("bbox_head.cls_branches.6.bias") == "proposal_head.classifier.bias"
    assert naming.to_here("bbox_head.cls_branches.5.bias") == "decoder.heads.classifiers.5.bias"


def test_batch_counters_are_kept_where_batch_normalisation_trains() -> None:
    config = small_config("dino_aitodv2", "model.backbone.batch_norm=trainable")
    state = build_detector(config).state_dict()
    state["backbone.bn1.num_batches_tracked"] = torch.tensor(7)
    naming = mmdetection_naming(detector="dino", num_layers=config.model.decoder.num_layers)
    published = to_mmdetection(state, naming)
    assert published["backbone.bn1.num_batches_tracked"] == 7
    translated = translate(published, naming, state)
    assert translated.state.keys() == state.keys()
    assert translated.skipped == {}


SAME_SHAPE = {  # pairs that a wrong table could exchange without another shape
    "transformer.encoder.layers.0.norm1.weight": "encoder.layers.0.attention_norm.weight",
    "transformer.encoder.layers.0.norm2.weight": "encoder.layers.0.ffn_norm.weight",
    "transformer.decoder.layers.1.norm1.bias": "decoder.layers.1.cross_norm.bias",
    "transformer.decoder.layers.1.norm2.bias": "decoder.layers.1.self_norm.bias",
    "transformer.decoder.layers.1.norm3.bias": "decoder.layers.1.ffn_norm.bias",
    "transformer.enc_output.weight": "proposal_head.transform.weight",
    "bbox_embed.1.layers.0.weight": "decoder.heads.box_heads.1.hidden.0.weight",
    "bbox_embed.1.layers.1.weight": "decoder.heads.box_heads.1.hidden.2.weight",
    "class_embed.0.weight": "decoder.heads.classifiers.0.weight",
    "class_embed.1.weight": "decoder.heads.classifiers.1.weight",
}
ENCODER_HEADS = {
    "dino_aitodv2": ("transformer.enc_out_class_embed", "transformer.enc_out_bbox_embed"),
    "deformable_detr_aitodv2": ("class_embed.2", "bbox_embed.2"),
}


@pytest.mark.parametrize("name", ENCODER_HEADS)
def test_original_tensors_fit_and_land_in_their_places(name: str) -> None:
    config = small_config(name, "model.neck.bias=true")
    detector = build_detector(config)
    state = original_state(config, num_classes=8, label_rows=9)
    translated = translate(state, original_of(config), detector.state_dict())
    assert load_weights(detector, translated.state, source=name) == Loaded()
    own = detector.state_dict()
    class_head, box_head = ENCODER_HEADS[name]
    last = len(config.model.backbone.out_strides)
    places = SAME_SHAPE | {
        f"{class_head}.weight": "proposal_head.classifier.weight",
        f"{box_head}.layers.1.weight": "proposal_head.box_head.hidden.2.weight",
        "input_proj.0.1.weight": "neck.projections.0.1.weight",
        f"input_proj.{last}.0.bias": "neck.downsamplings.0.0.bias",
    }
    for theirs, ours in places.items():
        assert torch.equal(state[theirs], own[ours]), theirs
    duplicates = [key for key in state if re.match(r"transformer\.decoder\.(class|bbox)_embed", key)]
    assert translated.skipped.pop("second names of tensors above") == duplicates
    if name == "dino_aitodv2":
        assert torch.equal(state["label_enc.weight"][:8], own["denoising.label_embedding.weight"])
        assert translated.skipped.popitem()[1] == ["rows 8 to 8 of the label table"]
    assert translated.skipped == {}


def test_a_second_name_with_other_values_is_not_left_out() -> None:
    config = small_config("deformable_detr_aitodv2", "model.neck.bias=true")
    state = original_state(config, num_classes=8)
    odd = "transformer.decoder.class_embed.0.weight"
    state[odd] = state[odd] + 1
    translated = translate(state, original_of(config), ())
    assert odd in translated.state
    assert odd not in translated.skipped["second names of tensors above"]


def original_decoder_layer(state: dict[str, Tensor], layer: DecoderLayer, queries: Tensor, position: Tensor) -> Tensor:
    """The original's order of operations on its own names, from the same deformable cross-attention."""

    def norm(x: Tensor, number: int) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], state[f"norm{number}.weight"], state[f"norm{number}.bias"])

    attention = nn.MultiheadAttention(queries.shape[-1], layer.self_attention.num_heads, batch_first=True)
    own = {key.removeprefix("self_attn."): value for key, value in state.items() if key.startswith("self_attn.")}
    attention.load_state_dict(own)
    with_position = queries + position
    queries = norm(queries + attention(with_position, with_position, queries)[0], 2)
    queries = norm(queries + layer.cross_attention(*cross_inputs(queries + position)), 1)
    hidden = nn.functional.linear(queries, state["linear1.weight"], state["linear1.bias"]).relu()
    return norm(queries + nn.functional.linear(hidden, state["linear2.weight"], state["linear2.bias"]), 3)


BOXES = torch.full((1, 5, 4), 0.5)
FEATURES = FeatureTokens(
    tokens=torch.linspace(-1, 1, 4 * 16).view(1, 4, 16),
    position=torch.zeros(1, 4, 16),
    padding_mask=torch.zeros(1, 4, dtype=torch.bool),
    spatial_shapes=((2, 2),),
    valid_ratios=torch.ones(1, 1, 2),
)
MEMORY = Memory(FEATURES.tokens, FEATURES)


def cross_inputs(queries: Tensor) -> tuple:
    return queries, MEMORY.references(BOXES), MEMORY.tokens, FEATURES.padding_mask, FEATURES.spatial_shapes


def test_a_decoder_layer_computes_what_the_original_computes() -> None:
    torch.manual_seed(0)
    layer = DecoderLayer(LayerSizes(hidden_dim=16, num_levels=1, num_heads=2, num_points=2, ffn_dim=24, dropout=0.0))
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    naming = original_naming(detector="dino", num_layers=1, num_maps=1, num_levels=1)
    prefix = "decoder.layers.0."
    state = {
        naming.from_here(prefix + name).removeprefix(f"transformer.{prefix}"): value
        for name, value in layer.state_dict().items()
    }
    queries, position = torch.randn(2, 1, 5, 16)
    expected = original_decoder_layer(state, layer, queries, position)
    torch.testing.assert_close(layer(queries, position, BOXES, MEMORY, QueryBlocks()), expected)


def test_group_norm_does_not_remove_the_bias_of_the_neck() -> None:
    torch.manual_seed(0)
    necks = [Neck(in_channels=(3,), hidden_dim=8, num_levels=2, num_groups=2, bias=bias) for bias in (False, True)]
    plain, biased = necks
    assert set(biased.state_dict()) - set(plain.state_dict()) == {"projections.0.0.bias", "downsamplings.0.0.bias"}
    assert all(not value.any() for name, value in biased.state_dict().items() if name.endswith("0.0.bias"))
    biased.load_state_dict(plain.state_dict(), strict=False)
    image = torch.randn(1, 3, 8, 8)
    for without, with_zeros in zip(plain([image]), biased([image]), strict=True):
        torch.testing.assert_close(without, with_zeros)
    for name, parameter in biased.named_parameters():
        if name.endswith("0.0.bias"):
            nn.init.normal_(parameter)
    for without, with_bias in zip(plain([image]), biased([image]), strict=True):
        assert float((without - with_bias).detach().abs().max()) > 0.1
