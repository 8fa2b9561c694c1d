"""Random batches: an image gets the same boxes, scores, losses and gradients alone and beside any others of its size.

Each detector sees many random batches: other sizes, contrasts, query counts and objects. A case whose count or ranking
would change under a rounding error is drawn again; the number of redraws is printed. Planted faults showed in the
first two batches, so the quick tests take a tenth of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from configs.schema import Config
from datasets.structures import Target
from models.build import build_criterion, build_postprocess
from models.criterion import Criterion
from models.denoising import NoiseDraws
from models.structures import DetectorOutput
from tests.support.shrunken import (
    DYNAMIC,
    SIDE,
    SYSTEMS,
    random_images,
    random_target,
    small_config,
    small_detector,
    spread_counts,
)

CASES = pytest.mark.parametrize(
    "numbers", [range(20), pytest.param(range(20, 200), marks=pytest.mark.slow)], ids=["few", "many"]
)
DETECTORS = 5
TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4  # of the norm of the sum
ROUNDING_MARGIN = 1e-3  # objects
RANKING_MARGIN = 1e-5  # scores of one image differ by up to 2.4e-6 from batch to batch


@dataclass(frozen=True)
class Case:
    config: Config
    detector: nn.Module
    images: Tensor
    targets: list[Target]
    redraws: int

    def run(self, rows: slice = slice(None), draws: NoiseDraws | None = None) -> DetectorOutput:
        """The detector on some images of the batch, with denoising where there are draws."""
        images, targets = self.images[rows], self.targets[rows]
        mask = torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool)
        return self.detector(images, mask) if draws is None else self.detector(images, mask, targets, draws)


@cache
def detector_of(name: str, seed: int) -> tuple[Config, nn.Module]:
    overrides = ["model.encoder.dropout=0.0", "model.decoder.dropout=0.0"]
    if name.startswith("dino"):  # one denoising group, whatever the rest of the batch; empty slots hidden
        overrides += ["model.denoising.num_queries=1", "fidelity.mask_denoising_padding=true"]
    config = small_config(name, *overrides)
    detector = small_detector(config, seed=seed)
    if name in DYNAMIC:  # noise counts as objects, flat ground does not
        probes, mask = random_images([(SIDE, SIDE)] * 2, seed=seed)
        probes[0] = 1.0
        probes[1, :, :, SIDE // 2 :] = 1.0
        spread_counts(detector, probes, mask, fewest=6, most=20)
    return config, detector.eval()


@cache
def draw_case(name: str, number: int) -> Case:
    config, detector = detector_of(name, number % DETECTORS)
    redraws = 0
    while True:
        rng = np.random.default_rng((number, redraws))
        size = tuple(int(side) for side in rng.integers(48, 97, 2))
        batch = int(rng.integers(2, 5))
        generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
        images = torch.randn(batch, 3, *size, generator=generator)
        for image, share in zip(images, rng.uniform(0, 1, batch), strict=True):
            image[:, :, round(share * size[1]) :] = 1.0  # flat ground
        counts = rng.choice([0, 1, 2, 5, 12, 40], batch)
        targets = [random_target(int(count), size, seed=100 * number + i) for i, count in enumerate(counts)]
        case = Case(config, detector, images, targets, redraws)
        if is_stable(case):
            return case
        redraws += 1


@torch.no_grad()
def is_stable(case: Case) -> bool:
    """Whether no query count and no rank hangs on the last bits."""
    output = case.run()
    if "predicted_count" in output.aux:
        fraction = output.aux["predicted_count"] % 1
        if bool(((fraction - 0.5).abs() < ROUNDING_MARGIN).any()):
            return False
    logits = output.proposals.logits[0]
    scores = logits[..., 0] if case.detector.class_agnostic else logits.max(-1).values
    most = int(output.num_queries.max()) + 1
    ranked = scores.sort(dim=1, descending=True)
    close = -ranked.values[:, :most].diff(dim=1) < RANKING_MARGIN
    tokens = torch.cat([output.proposals.logits[0], output.proposals.boxes[0]], dim=-1)
    tokens = tokens.gather(1, ranked.indices[:, :most, None].expand(-1, -1, tokens.shape[-1]))
    alike = (tokens[:, 1:] == tokens[:, :-1]).all(-1)  # invalid tokens are interchangeable
    return not bool((close & ~alike).any())


def alone(case: Case) -> list[slice]:
    return [slice(i, i + 1) for i in range(len(case.targets))]


def assert_same(ours: Tensor, expected: Tensor, number: int, what: str) -> None:
    assert ours.shape == expected.shape, f"case {number}: {what}"
    if ours.numel():
        off = float((ours - expected).abs().max())
        assert off <= TOLERANCE, f"case {number}: {what} off by {off:.3g}"


@CASES
@pytest.mark.parametrize("name", SYSTEMS)
def test_predictions(name: str, numbers: range) -> None:
    redraws, spread = 0, 0
    for number in numbers:
        case = draw_case(name, number)
        redraws += case.redraws
        with torch.no_grad():
            together, singles = case.run(), [case.run(rows) for rows in alone(case)]
        spread += len(set(together.num_queries.tolist())) > 1
        sizes = [target.size for target in case.targets]
        postprocess = build_postprocess(case.config)
        found = postprocess(together, sizes, sizes)
        for i, single in enumerate(singles):
            count = int(single.num_queries[0])
            assert int(together.num_queries[i]) == count, f"case {number}"
            for kind in ("logits", "boxes"):
                ours = getattr(together.queries, kind)[:, i, :count]
                assert_same(ours, getattr(single.queries, kind)[:, 0], number, kind)
            (expected,) = postprocess(single, sizes[:1], sizes[:1])
            assert len(found[i].scores) == len(expected.scores)
            assert_same(found[i].scores, expected.scores, number, "scores")
    print(f"{name}: {len(numbers)} cases, {spread} with unequal query counts, {redraws} redrawn")
    assert (spread > len(numbers) // 2) == (name in DYNAMIC)


@CASES
@pytest.mark.parametrize("name", SYSTEMS)
def test_losses_and_gradients_are_the_sums_of_the_single_images(name: str, numbers: range) -> None:
    """Un-normalised losses of the queries, the proposals and the density map."""
    for number in numbers:
        case = draw_case(name, number)
        losses, gradient = sums_of(case, [slice(None)])
        expected, expected_gradient = sums_of(case, alone(case))
        assert losses.keys() == expected.keys()
        assert ("density" in losses) == (name in DYNAMIC)
        for key, value in expected.items():
            assert losses[key] == pytest.approx(value, rel=1e-4, abs=1e-4), f"case {number}: {key}"
        off = float((gradient - expected_gradient).norm())
        assert off <= GRADIENT_TOLERANCE * float(expected_gradient.norm()), f"case {number}: gradient off by {off:.3g}"


def sums_of(case: Case, parts: Sequence[slice]) -> tuple[dict[str, float], Tensor]:
    """Losses without normalizers, and their gradient in all parameters, summed over parts of the batch."""
    criterion = build_criterion(case.config)
    parameters = [p for p in case.detector.parameters() if p.requires_grad]
    losses: dict[str, float] = {}
    gradient = torch.zeros(sum(p.numel() for p in parameters))
    for rows in parts:
        values = plain_losses(criterion, case.run(rows), case.targets[rows])
        total = torch.stack(list(values.values())).sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
        gradient += torch.cat([g.flatten() for g in flat])
        for key, value in values.items():
            losses[key] = losses.get(key, 0.0) + float(value.detach())
    return losses, gradient


def plain_losses(criterion: Criterion, output: DetectorOutput, targets: Sequence[Target]) -> dict[str, Tensor]:
    losses: dict[str, Tensor] = {}
    for loss, matched in criterion.matched_sets(output, targets, criterion.match(output, targets)):
        for kind, sums in loss(matched).items():
            losses |= {f"{matched.prefix}layer{layer}.{kind}": value for layer, value in enumerate(sums.sum(1))}
    objects = max(sum(len(target.labels) for target in targets), 1)
    return losses | {key: value * objects for key, value in criterion.auxiliary(output, targets).items()}


@CASES
@pytest.mark.parametrize("name", [name for name in SYSTEMS if name.startswith("dino")])
def test_denoising(name: str, numbers: range) -> None:
    """With the draws of each object fixed, and one group."""
    for number in numbers:
        case = draw_case(name, number)
        counts = [len(target.labels) for target in case.targets]
        draws, owner = draw_noise(counts, number)
        with torch.no_grad():
            together = case.run(draws=draws)
            assert together.denoising is not None
            for i, rows in enumerate(alone(case)):
                single = case.run(rows, noise_of_image(draws, owner == i))
                assert single.denoising is not None
                mine = ~together.denoising.padding_mask[i]
                assert int(mine.sum()) == 2 * counts[i]
                for kind in ("logits", "boxes"):
                    ours = getattr(together.denoising, kind)[:, i, mine]
                    assert_same(ours, getattr(single.denoising, kind)[:, 0], number, f"denoising {kind}")
                    queries = getattr(together.queries, kind)[:, i, : int(single.num_queries[0])]
                    assert_same(queries, getattr(single.queries, kind)[:, 0], number, kind)


def draw_noise(counts: Sequence[int], seed: int) -> tuple[NoiseDraws, Tensor]:
    """Random numbers of one group of a batch, and which image each row belongs to."""
    generator = torch.Generator().manual_seed(seed)
    owner = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).repeat(2)
    flip = torch.rand(len(owner), generator=generator)
    draws = NoiseDraws(
        label_flip=flip,
        new_labels=torch.randint(0, 8, (int((flip < 0.25).sum()),), generator=generator),
        sign=torch.randint(0, 2, (len(owner), 4), generator=generator).float(),
        shift=torch.rand(len(owner), 4, generator=generator),
    )
    return draws, owner


def noise_of_image(draws: NoiseDraws, mine: Tensor) -> NoiseDraws:
    flipped = draws.label_flip < 0.25
    return NoiseDraws(draws.label_flip[mine], draws.new_labels[mine[flipped]], draws.sign[mine], draws.shift[mine])
