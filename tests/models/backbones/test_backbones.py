"""Backbones: shapes and strides, frozen stages, equality with torchvision, and where weights come from."""

import urllib.error
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from models.backbones.backbone import Backbone, build_backbone
from models.backbones.catalog import CATALOG
from models.backbones.efficientnet_lite import EfficientNetLite0, SameConv2d
from models.backbones.weights import WeightsError, load_backbone_weights

LITE0 = "efficientnet_lite0"
CHANNELS = {
    "resnet18": [4, 8, 16, 32],
    "resnet34": [4, 8, 16, 32],
    "resnet50": [16, 32, 64, 128],
    "resnet101": [16, 32, 64, 128],
    LITE0: [16, 24, 40, 112, 320],
}
LITE0_BODY_PARAMETERS = 2_958_848  # published total 4,652,008 less head convolution, its normalisation and classifier


def make(name: str, *, strides: tuple[int, ...] | None = None, width: int = 4, frozen: int = -1,
         frozen_batch_norm: bool = True) -> Backbone:  # fmt: skip
    default = (2, 4, 8, 16, 32) if name == LITE0 else (4, 8, 16, 32)
    torch.manual_seed(0)
    return build_backbone(
        name=name, out_strides=strides or default, base_width=64 if name == LITE0 else width,
        frozen_batch_norm=frozen_batch_norm, frozen_stages=frozen,
    )  # fmt: skip


@pytest.mark.parametrize("size", [(64, 96), (71, 50)])
@pytest.mark.parametrize("name", CHANNELS)
def test_maps_have_their_strides_and_channels(name: str, size: tuple[int, int]) -> None:
    backbone = make(name)
    with torch.no_grad():
        maps = backbone(torch.randn(2, 3, *size))
    assert backbone.out_channels == CHANNELS[name]
    expected = [
        (2, channels, -(-size[0] // stride), -(-size[1] // stride))
        for channels, stride in zip(CHANNELS[name], backbone.out_strides, strict=True)
    ]
    assert [tuple(feature.shape) for feature in maps] == expected
    assert all(bool(feature.isfinite().all()) for feature in maps)


@pytest.mark.parametrize(("name", "strides"), [("resnet18", (8, 16)), ("resnet50", (4,)), (LITE0, (4, 8))])
def test_stages_beyond_the_deepest_stride_are_not_built(name: str, strides: tuple[int, ...]) -> None:
    whole, part = make(name), make(name, strides=strides)
    assert set(part.state_dict()) < set(whole.state_dict())
    with torch.no_grad():
        maps = part(torch.randn(1, 3, 64, 64))
    assert [64 // feature.shape[-1] for feature in maps] == list(strides)


@pytest.mark.parametrize("frozen", [-1, 0, 1, 4])
@pytest.mark.parametrize("name", ["resnet18", LITE0])
def test_frozen_stages(name: str, frozen: int) -> None:
    backbone = make(name, frozen=frozen, frozen_batch_norm=False)
    prefixes = {
        "resnet18": [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)],
        LITE0: [("stem", "groups.0"), ("groups.1",), ("groups.2",), ("groups.3",), ("groups.4",)],
    }[name]
    still = tuple(f"{prefix}." for stage in prefixes[: frozen + 1] for prefix in stage)
    for key, parameter in backbone.named_parameters():
        assert parameter.requires_grad != key.startswith(still or ("nothing",)), key


def test_frozen_batch_norm_has_neither_parameters_nor_running_statistics_in_training() -> None:
    backbone = make("resnet18").train()
    assert not any("bn" in name for name, _ in backbone.named_parameters())
    before = {name: tensor.clone() for name, tensor in backbone.named_buffers()}
    backbone(torch.randn(2, 3, 32, 32) * 5)
    assert all(torch.equal(before[name], tensor) for name, tensor in backbone.named_buffers())
    trainable = make("resnet18", frozen_batch_norm=False)
    assert isinstance(trainable.bn1, nn.BatchNorm2d)
    assert any("bn1" in name for name, _ in trainable.named_parameters())


def test_same_padding_puts_the_odd_pixel_right_and_below() -> None:
    conv = SameConv2d(1, 1, 3, stride=2, bias=False)
    nn.init.ones_(conv.weight)
    image = torch.arange(16.0).view(1, 1, 4, 4)
    # pad one pixel right and below: windows start at rows and columns 0 and 2
    assert conv(image)[0, 0].tolist() == [[45.0, 39.0], [66.0, 50.0]]


def test_a_torchvision_resnet50_file_gives_torchvisions_features(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = torchvision.models.resnet50(weights=None).eval()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    path = tmp_path / "resnet50.pth"
    torch.save(theirs.state_dict(), path)
    ours = make("resnet50", width=64)
    assert load_backbone_weights(ours, name="resnet50", weights=str(path)) == str(path)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
        expected = []
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            x = stage(x)
            expected.append(x)
        for found, feature in zip(ours(image), expected, strict=True):
            torch.testing.assert_close(found, feature, rtol=1e-3, atol=1e-4 * float(feature.abs().max()))


def published_lite0(backbone: EfficientNetLite0) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A random state dict in the published naming, and the same tensors by the names of `EfficientNetLite0`."""
    published: dict[str, Tensor] = {"_conv_head.weight": torch.randn(8, 320, 1, 1), "_fc.bias": torch.randn(10)}
    ours: dict[str, Tensor] = {}

    def add(name: str, module: nn.Module, own: str) -> None:
        for key, tensor in module.state_dict().items():
            ours[f"{own}.{key}"] = published[f"{name}.{key}"] = torch.rand_like(tensor) + 0.5
        if isinstance(module, FrozenBatchNorm2d):
            published[f"{name}.num_batches_tracked"] = torch.tensor(7)

    add("_conv_stem", backbone.stem[0], "stem.0")
    add("_bn0", backbone.stem[1], "stem.1")
    add("_bn1", FrozenBatchNorm2d(8), "head, which the backbone does not have")
    number = 0
    for group, blocks in enumerate(backbone.groups):
        for index, block in enumerate(blocks):
            parts = [("_depthwise_conv", "_bn1", block.depthwise), ("_project_conv", "_bn2", block.project)]
            if block.expand is not None:
                parts.insert(0, ("_expand_conv", "_bn0", block.expand))
            for (conv, norm, module), own in zip(parts[::-1], ("project", "depthwise", "expand"), strict=False):
                add(f"_blocks.{number}.{conv}", module[0], f"groups.{group}.{index}.{own}.0")
                add(f"_blocks.{number}.{norm}", module[1], f"groups.{group}.{index}.{own}.1")
            number += 1
    assert number == 16
    return published, {key: tensor for key, tensor in ours.items() if not key.startswith("head")}


@pytest.mark.parametrize("strides", [(2, 4, 8, 16, 32), (4, 8, 16)])
def test_a_published_lite0_file_loads(tmp_path: Path, strides: tuple[int, ...]) -> None:
    whole = make(LITE0)
    assert isinstance(whole, EfficientNetLite0)
    published, expected = published_lite0(whole)
    path = tmp_path / "lite0.pth"
    torch.save(published, path)
    backbone = make(LITE0, strides=strides)
    load_backbone_weights(backbone, name=LITE0, weights=str(path))
    found = backbone.state_dict()
    assert set(found) <= set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_lite0_has_the_published_size_and_epsilon() -> None:
    backbone = make(LITE0, frozen_batch_norm=False)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == LITE0_BODY_PARAMETERS
    assert {m.eps for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}
    assert CATALOG[LITE0].mean == pytest.approx((127 / 255,) * 3)
    assert (CATALOG["resnet50"].mean, CATALOG["resnet50"].std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_missing_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "nowhere.pth"
    with pytest.raises(WeightsError, match=r"nowhere\.pth: no such weights file.*weights: null"):
        load_backbone_weights(make("resnet18"), name="resnet18", weights=str(path))


def test_a_wrong_name_lists_the_names_that_exist() -> None:
    with pytest.raises(WeightsError, match=r"'IMAGENET1K_V9' is neither.*IMAGENET1K_V1.*null"):
        load_backbone_weights(make("resnet18"), name="resnet18", weights="IMAGENET1K_V9")
    with pytest.raises(WeightsError, match=r"efficientnet_lite0 weights 'IMAGENET1K_V1'.*fetch_weights.*null"):
        load_backbone_weights(make(LITE0, strides=(4,)), name=LITE0, weights="IMAGENET1K_V1")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints" / "resnet18-f37072fd.pth"


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("Name or service not known"),
        ConnectionResetError("reset by peer"),
        RuntimeError('invalid hash value (expected "f37072fd", got "00000000")'),
    ],
    ids=["unreachable", "reset", "wrong content"],
)
def test_a_failed_download_names_source_cache_and_the_way_out(
    cache: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(url: str, *args: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(WeightsError) as caught:
        load_backbone_weights(make("resnet18"), name="resnet18", weights="IMAGENET1K_V1")
    message = str(caught.value)
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in message
    assert str(cache) in message
    assert "model.backbone.weights: null" in message


def test_a_cached_file_is_not_downloaded_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, backbone = make("resnet18", width=8), make("resnet18", width=8, strides=(4, 8))
    for tensor in source.state_dict().values():
        tensor.uniform_(0.5, 1)
    cache.parent.mkdir()
    torch.save(source.state_dict(), cache)
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("downloads"))
    assert load_backbone_weights(backbone, name="resnet18", weights="IMAGENET1K_V1") == str(cache)
    state = source.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in backbone.state_dict().items())


def test_files_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    backbone = make("resnet18")
    state = backbone.state_dict()
    path = tmp_path / "other.pth"
    torch.save({name: tensor for name, tensor in state.items() if name != "layer3.0.conv1.weight"}, path)
    with pytest.raises(WeightsError, match=r"other\.pth.*1 tensors missing.*layer3\.0\.conv1\.weight"):
        load_backbone_weights(backbone, name="resnet18", weights=str(path))
    torch.save(make("resnet18", width=8).state_dict(), path)
    with pytest.raises(WeightsError, match="of another shape"):
        load_backbone_weights(backbone, name="resnet18", weights=str(path))
    path.write_text("<html>not weights</html>")
    with pytest.raises(WeightsError, match=r"other\.pth: not a readable weights file"):
        load_backbone_weights(backbone, name="resnet18", weights=str(path))
    torch.save([1, 2, 3], path)
    with pytest.raises(WeightsError, match="not a state dict"):
        load_backbone_weights(backbone, name="resnet18", weights=str(path))
