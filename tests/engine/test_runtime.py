"""runtime.compile and runtime.channels_last: the same predictions, losses and gradients, weights as they were."""

import pytest
import torch
from torch import Tensor, nn

from engine.runtime import accelerate
from models.build import build_criterion
from tests.support.shrunken import SIDE, random_images, random_target, small_config, small_detector

NAME = "dino_d3q_aitodv2"
# Fewer channels end the process on some CPUs, see engine/runtime.py; more stages take minutes to compile.
SHAPE = ["model.backbone.base_width=8", "model.backbone.out_strides=[4,8]", "model.neck.num_levels=3"]


def results(
    *overrides: str, device_type: str = "cpu"
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor, nn.Module]:
    """Losses, gradients, predictions in evaluation, and the detector."""
    config = small_config(NAME, "model.encoder.dropout=0.0", "model.decoder.dropout=0.0", *SHAPE, *overrides)
    detector = small_detector(config)
    accelerate(detector, config.runtime, device_type=device_type)
    images, mask = random_images([(SIDE, SIDE), (64, 80)])
    targets = [random_target(7), random_target(2, (64, 80))]
    torch.manual_seed(1)
    losses = build_criterion(config)(detector.train()(images, mask, targets), targets)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in detector.named_parameters() if p.grad is not None}
    with torch.inference_mode():
        boxes = detector.eval()(images, mask).queries.boxes[-1]
    return losses, gradients, boxes.clone(), detector


def assert_same_as_plain(*overrides: str, device_type: str = "cpu") -> nn.Module:
    expected_losses, expected_gradients, expected_boxes, plain = results()
    losses, gradients, boxes, detector = results(*overrides, device_type=device_type)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected_gradients.values())
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-6 * max(largest, 1.0))
    torch.testing.assert_close(boxes, expected_boxes, rtol=1e-5, atol=1e-5)
    ours = detector.state_dict()
    assert list(ours) == list(plain.state_dict())
    # In the order of the weights: the fused optimiser takes that for granted.
    assert all(tensor.is_contiguous() for tensor in [*gradients.values(), *ours.values()])
    return detector


def test_channels_last() -> None:
    """What a GPU would do, on the CPU."""
    detector = assert_same_as_plain("runtime.channels_last=true", device_type="cuda")
    with torch.no_grad():
        maps = detector.backbone(random_images([(SIDE, SIDE)])[0])
    assert all(m.is_contiguous(memory_format=torch.channels_last) for m in maps)


@pytest.mark.slow
def test_compiled() -> None:
    torch.compiler.reset()
    detector = assert_same_as_plain("runtime.compile=true")
    compiled = [name for name, m in detector.named_modules() if m._compiled_call_impl is not None]
    assert compiled == ["backbone", "encoder"]
