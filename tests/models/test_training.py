"""Training of the four systems: crowds beside empty images, no objects at all, mixed sizes, autocast."""

import pytest
import torch
from torch import Tensor, nn

import models.attention
from configs.schema import Config
from datasets.structures import Target
from models.build import build_criterion
from models.matching.hungarian import NonFiniteCostError
from tests.support.shrunken import DYNAMIC, SIDE, SYSTEMS, random_images, random_target, small_config, small_detector

STEPS = 10


def train(config: Config, sizes: list[tuple[int, int]], targets: list[Target], steps: int) -> list[dict[str, Tensor]]:
    """AdamW steps; every trainable parameter must get a finite gradient in each."""
    detector = small_detector(config).train()
    criterion = build_criterion(config)
    trainable = {name: p for name, p in detector.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-3)
    before = {name: p.detach().clone() for name, p in trainable.items()}
    history = []
    images, mask = random_images(sizes)
    for _ in range(steps):
        losses = criterion(detector(images, mask, targets), targets)
        assert all(bool(loss.isfinite()) for loss in losses.values()), losses
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        without = [name for name, p in trainable.items() if p.grad is None]
        assert not without
        assert all(bool(p.grad.isfinite().all()) for p in trainable.values())
        optimizer.step()
        history.append({name: loss.detach() for name, loss in losses.items()})
    assert all(bool(p.isfinite().all()) for p in trainable.values())
    assert any(not torch.equal(before[name], p) for name, p in trainable.items())
    return history


def total(losses: dict[str, Tensor]) -> float:
    return float(sum(losses.values()))


@pytest.mark.parametrize("name", SYSTEMS)
def test_ten_steps_with_none_one_and_three_hundred_objects(name: str) -> None:
    targets = [random_target(count, seed=i) for i, count in enumerate((0, 1, 300))]
    history = train(small_config(name), [(SIDE, SIDE)] * 3, targets, STEPS)
    assert total(history[-1]) < total(history[0])
    assert ("density" in history[0]) == (name in DYNAMIC)
    assert ("denoising.class" in history[0]) == name.startswith("dino")
    assert {"class", "box", "giou", "layer0.class", "encoder.class"} <= history[0].keys()


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_batch_without_any_object(name: str) -> None:
    (losses,) = train(small_config(name), [(SIDE, SIDE)] * 2, [random_target(0)] * 2, 1)
    assert all(float(loss) == 0 for key, loss in losses.items() if key.endswith(("box", "giou")))
    assert float(losses["class"]) > 0


@pytest.mark.parametrize("name", SYSTEMS)
def test_images_of_different_sizes_in_one_batch(name: str) -> None:
    sizes = [(SIDE, SIDE), (64, 80), (SIDE, 50)]
    targets = [random_target(5, size, seed=i) for i, size in enumerate(sizes)]
    (losses,) = train(small_config(name), sizes, targets, 1)
    assert float(losses["giou"]) > 0


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_autocast_keeps_what_places_boxes_in_float32(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(name)
    detector = small_detector(config).train()
    attended: list[tuple[torch.dtype, ...]] = []
    operator = models.attention.ms_deform_attn

    def spy(value: Tensor, shapes: object, locations: Tensor, weights: Tensor) -> Tensor:
        attended.append((value.dtype, locations.dtype, weights.dtype))
        return operator(value, shapes, locations, weights)

    monkeypatch.setattr(models.attention, "ms_deform_attn", spy)
    low: list[torch.dtype] = []
    hook = detector.encoder.layers[0].ffn[0].register_forward_hook(lambda m, i, result: low.append(result.dtype))
    exact: dict[str, torch.dtype] = {}
    for name_of, module in detector.named_modules():
        if name_of.endswith(("sampling_offsets", "deltas", "box_head.hidden", "proposal_head.classifier")):
            module.register_forward_hook(lambda m, i, result, key=name_of: exact.update({key: result.dtype}))
    images, mask = random_images([(SIDE, SIDE), (80, SIDE)])
    targets = [random_target(6, (SIDE, SIDE)), random_target(2, (80, SIDE))]
    with torch.autocast("cpu", dtype):
        output = detector(images, mask, targets)
        losses = build_criterion(config)(output, targets)
    hook.remove()
    assert low == [dtype]  # the test is under autocast
    assert len(attended) == config.model.encoder.num_layers + config.model.decoder.num_layers
    assert set(attended) == {(dtype, torch.float32, torch.float32)}
    assert len(exact) >= len(attended) + config.model.decoder.num_layers + 2
    assert set(exact.values()) == {torch.float32}, exact
    predictions = [output.queries, output.proposals, output.selected]
    predictions += [output.denoising] if output.denoising is not None else []
    kinds = {tensor.dtype for p in predictions for tensor in (p.logits, p.boxes)}
    kinds |= {output.initial_boxes.dtype} | {loss.dtype for loss in losses.values()}
    kinds |= {value.dtype for value in output.aux.values()}
    assert kinds == {torch.float32}
    loss = torch.stack(list(losses.values())).sum()
    assert bool(loss.isfinite())
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in detector.parameters() if p.requires_grad)


def test_autocast_places_boxes_within_a_fraction_of_a_pixel() -> None:
    """bfloat16 boxes would be off by pixels."""
    config = small_config("deformable_detr_aitodv2")
    detector = small_detector(config).eval()
    images, mask = random_images([(SIDE, SIDE)])
    with torch.no_grad():
        exact = detector(images, mask).proposals.boxes
        with torch.autocast("cpu", torch.bfloat16):
            rounded = detector(images, mask).proposals.boxes
    assert not torch.equal(exact, rounded)
    assert float((exact - rounded).abs().max()) < 0.02


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_diverged_predictions_are_an_error(value: float) -> None:
    config = small_config("deformable_detr_d3q_aitodv2")
    detector = small_detector(config).train()
    nn.init.constant_(detector.decoder.heads.classifiers[-1].bias, value)
    images, mask = random_images([(SIDE, SIDE)])
    targets = [random_target(3)]
    output = detector(images, mask, targets)
    criterion = build_criterion(config)
    with pytest.raises(NonFiniteCostError, match="diverged"):
        criterion(output, targets)


@pytest.mark.parametrize("name", ["dino_aitodv2", "dino_d3q_aitodv2"])
def test_hidden_denoising_padding_changes_only_images_with_fewer_objects(name: str) -> None:
    """An image's denoising queries then do not depend on how many objects other images have."""
    targets = [random_target(2), random_target(9, seed=1)]
    images, mask = random_images([(SIDE, SIDE)] * 2)
    boxes = {}
    for hidden in ("false", "true"):
        config = small_config(name, f"fidelity.mask_denoising_padding={hidden}")
        detector = small_detector(config).train()
        torch.manual_seed(3)
        with torch.no_grad():
            output = detector(images, mask, targets)
        assert output.denoising is not None
        boxes[hidden] = output.denoising.boxes[-1]
    shown = ~output.denoising.padding_mask
    assert not torch.equal(boxes["false"][0][shown[0]], boxes["true"][0][shown[0]])
    torch.testing.assert_close(boxes["false"][1], boxes["true"][1])
