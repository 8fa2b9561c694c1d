"""The shipped experiments at full size: as many parameters as the published models, and the published start."""

import math
from pathlib import Path

import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

from configs.loader import load_config
from d3q import DensityBudget
from models.build import build_criterion, build_detector, build_postprocess
from models.proposals import FixedBudget
from tests.support.shrunken import CONFIGS, SYSTEMS, small_config

# all (frozen batch normalisation counts, as published), trainable
PUBLISHED = {
    "dino_d3q_aitodv2": (48_790_299, 48_514_779),
    "dino_d3q_from_pretrained_aitodv2": (48_790_299, 48_514_779),
    "dino_aitodv2": (47_916_820, 47_641_300),
    "deformable_detr_d3q_aitodv2": (41_990_811, 41_715_291),
    "deformable_detr_aitodv2": (41_084_308, 40_808_788),
}


@pytest.mark.parametrize(
    "path",
    sorted(path for path in CONFIGS.rglob("*.yaml") if path.parent.name != "fragments"),
    ids=lambda path: path.stem,
)
def test_every_shipped_experiment_builds(path: Path) -> None:
    config = load_config(path)
    with torch.device("meta"):
        detector = build_detector(config)
    assert isinstance(detector.query_budget, FixedBudget if config.model.d3q is None else DensityBudget)
    losses = (config.model.d3q is not None) + (config.criterion.count_weight > 0)
    assert len(build_criterion(config).auxiliary_losses) == losses
    assert build_postprocess(config).max_detections == config.model.num_queries
    if path.stem in PUBLISHED:
        frozen = [m for m in detector.modules() if isinstance(m, FrozenBatchNorm2d)]
        affine = sum(m.weight.numel() + m.bias.numel() for m in frozen)
        total = affine + sum(p.numel() for p in detector.parameters())
        trainable = sum(p.numel() for p in detector.parameters() if p.requires_grad)
        assert (total, trainable) == PUBLISHED[path.stem]


@pytest.mark.parametrize("name", SYSTEMS)
def test_initial_weights(name: str) -> None:
    torch.manual_seed(0)
    detector = build_detector(small_config(name))
    heads = [*detector.decoder.heads.classifiers, detector.proposal_head.classifier]
    assert all(torch.allclose(head.bias, torch.tensor(-math.log(99.0))) for head in heads)
    box_heads = [*detector.decoder.heads.box_heads, detector.proposal_head.box_head]
    assert all(float(p.detach().abs().max()) == 0 for head in box_heads for p in head.deltas.parameters())
    attention = detector.encoder.layers[0].attention
    assert float(attention.sampling_offsets.weight.detach().abs().max()) == 0
    ring = attention.sampling_offsets.bias.view(attention.num_heads, attention.num_levels, attention.num_points, 2)
    radius = ring.abs().amax(-1)
    torch.testing.assert_close(radius, torch.arange(1.0, attention.num_points + 1).expand_as(radius))
    if detector.query_budget.__class__ is DensityBudget:
        # Built without data: the published start. `main.train` puts the data set's density into the config.
        assert detector.query_budget.density_branch.output.bias.item() == pytest.approx(math.log(0.1 / 0.9), abs=1e-3)
