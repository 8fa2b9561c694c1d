"""The predicted memory of a training step: against a measured one, and what it must follow."""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from configs.loader import load_config
from engine.commands.step_memory import StepMemory, _LiveTensors, estimate_training_step
from models.build import build_criterion, expected_queries
from scripts import benchmark
from tests.support.shrunken import CONFIGS, SIDE, SYSTEMS, random_images, random_target, small_config, small_detector

WIDE = [
    "model.backbone.weights=null",
    "model.backbone.name=resnet18",
    "model.hidden_dim=128",
    "model.encoder.num_layers=2",
    "model.decoder.num_layers=2",
]


def estimate(name: str, *overrides: str, objects: tuple[int, ...] = (5,), **options: Any) -> StepMemory:
    settings = {"size": (SIDE, SIDE), "device_type": "cpu", "autocast": None} | options
    return estimate_training_step(small_config(name, *overrides), objects=objects, **settings)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory as Linux reports it")
@pytest.mark.parametrize("recompute", ["none", "layers"])
def test_within_15_percent_of_what_a_process_takes(recompute: str, tmp_path: Path) -> None:
    """Both of the process and of the step alone, on tensors of megabytes."""
    file = tmp_path / "figures.json"
    arguments = ["memory", "--device", "cpu", "--threads", "1", "--side", "320", "--objects", "60"]
    settings = ["--set", *WIDE, f"runtime.recompute={recompute}"]
    assert benchmark.main([*arguments, *settings, "--json", str(file)]) == 0
    (rows,) = json.loads(file.read_text())["tables"].values()
    assert rows[0]["queries"] == 300
    assert rows[0]["process, predicted / measured"] == pytest.approx(1, abs=0.15)
    assert rows[0]["step, predicted / measured"] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("name", ["dino_d3q_aitodv2", "deformable_detr_aitodv2"])
def test_it_follows_what_a_step_holds(name: str) -> None:
    plain = estimate(name)
    detector = small_detector(small_config(name))
    assert plain.weights == sum(tensor.nbytes for tensor in [*detector.parameters(), *detector.buffers()])
    assert plain.trained == sum(p.nbytes for p in detector.parameters() if p.requires_grad)
    assert plain.peak == plain.step + 2 * plain.trained

    def activations(*overrides: str, **options: Any) -> int:
        memory = estimate(name, *overrides, **options)
        return memory.step - memory.weights

    whole = plain.step - plain.weights
    assert activations("runtime.recompute=layers") < activations("runtime.recompute=feed_forward") < whole
    assert activations(objects=(5, 5)) == pytest.approx(2 * whole, rel=0.15)
    assert activations(objects=(0,)) <= whole < activations(objects=(300,))


def test_half_precision_takes_less() -> None:
    name, wide = "dino_d3q_aitodv2", "model.encoder.ffn_dim=1024"
    assert estimate(name, wide, autocast=torch.bfloat16).step < 0.8 * estimate(name, wide).step


def test_a_gpu_keeps_other_things() -> None:
    """Dropout keeps a byte per number, not four; norms stay float32 under autocast; costs come in large blocks."""
    name, plain = "dino_aitodv2", ["model.encoder.dropout=0.0", "model.decoder.dropout=0.0"]
    dropout = ["model.encoder.dropout=0.1", "model.encoder.ffn_dim=1024"]
    assert estimate(name, *plain, device_type="cuda").step == pytest.approx(estimate(name, *plain).step, rel=0.05)
    assert estimate(name, *dropout, device_type="cuda").step < 0.85 * estimate(name, *dropout).step
    half = {"autocast": torch.bfloat16}
    assert estimate(name, *plain, device_type="cuda", **half).step > 1.05 * estimate(name, *plain, **half).step
    crowd = {"objects": (2000,)}
    all_tokens = "dino_d3q_aitodv2"
    assert estimate(all_tokens, device_type="cuda", **crowd).step > 1.2 * estimate(all_tokens, **crowd).step


@pytest.mark.parametrize(
    ("name", "amp", "measured"),
    [
        ("dino_d3q_aitodv2", None, 7735),
        ("deformable_detr_d3q_aitodv2", torch.bfloat16, 2319),
    ],
)
def test_within_5_percent_of_what_was_measured_on_a_gpu(
    name: str, amp: torch.dtype | None, measured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MiB of full-size steps on an H200 with torch 2.11: docs/benchmarks.md."""
    monkeypatch.setattr(import_module("ops.ms_deform_attn"), "choose_backend", lambda *_: "cpp")  # built or not
    config = load_config(CONFIGS / f"{name}.yaml", ["model.backbone.weights=null"])
    found = estimate_training_step(config, size=(800, 800), objects=[300], device_type="cuda", autocast=amp)
    assert (found.peak - found.weights) / 2**20 == pytest.approx(measured, rel=0.05)


def test_no_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    estimate("dino_d3q_aitodv2", "model.encoder.dropout=0.1")
    assert torch.equal(torch.get_rng_state(), before)


def test_queries_follow_the_objects() -> None:
    config = small_config("dino_d3q_aitodv2", "model.d3q.min_queries=12", "model.d3q.max_queries=60")
    assert expected_queries(config, [0, 7, 500]) == [12, 21, 60]
    assert expected_queries(small_config("dino_aitodv2"), [0, 7]) == [25, 25]


def test_what_is_freed_counts_no_more() -> None:
    with FakeTensorMode(), _LiveTensors() as tensors:
        first = torch.empty(1000)
        view = first[10:].view(-1)  # of the same storage
        assert tensors.live == 4000
        second = first + 1
        del first
        assert (tensors.live, tensors.peak) == (8000, 8000)  # the view holds it
        del view, second
        assert (tensors.live, tensors.peak) == (0, 8000)
        torch.empty(500)
        assert tensors.peak == 8000


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_activation_is_computed_in_place_on_a_view(name: str) -> None:
    """Autograd would answer with `CopySlices`: two more tensors of the feed-forward block's width."""
    config = small_config(name)
    images, mask = random_images([(SIDE, SIDE)])
    targets = [random_target(4)]
    losses = build_criterion(config)(small_detector(config).train()(images, mask, targets), targets)
    waiting, seen = [loss.grad_fn for loss in losses.values()], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    names = {node.name() for node in seen}
    assert "ReluBackward0" in names
    assert not any("CopySlices" in kind for kind in names), names
