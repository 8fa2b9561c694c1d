"""An image in a batch is the image alone: its queries, boxes, losses and gradients do not depend on the others."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from configs.schema import Config
from models.build import build_criterion, build_postprocess
from models.postprocess import PostProcess
from models.structures import DetectorOutput
from tests.support.shrunken import (
    BASELINES,
    DYNAMIC,
    SIDE,
    SYSTEMS,
    random_images,
    random_target,
    small_config,
    small_detector,
    spread_counts,
)


def case(name: str) -> tuple[Config, nn.Module, Tensor, Tensor]:
    """A detector and three images of one size, whose query counts are far apart under D3Q."""
    plain = ["model.denoising=null"] if name.startswith("dino") else []
    config = small_config(name, *plain, "criterion.decoder_normalizer=image", "model.encoder.dropout=0.0",
                          "model.decoder.dropout=0.0")  # fmt: skip
    detector = small_detector(config)
    images, mask = random_images([(SIDE, SIDE)] * 3)
    images[0] *= 0.05
    images[0] += 1.0
    images[2, :, :, SIDE // 2 :] = 1.0
    if name in DYNAMIC:
        spread_counts(detector, images, mask, fewest=6, most=25)
    return config, detector.eval(), images, mask


@pytest.mark.parametrize("name", SYSTEMS)
def test_inference_of_an_image_does_not_depend_on_the_others(name: str) -> None:
    _, detector, images, mask = case(name)
    with torch.no_grad():
        together = detector(images, mask)
        alone = [detector(images[i : i + 1], mask[i : i + 1]) for i in range(len(images))]
    counts = together.num_queries.tolist()
    assert (max(counts) >= 3 * min(counts)) == (name in DYNAMIC), counts
    for i, single in enumerate(alone):
        count = counts[i]
        assert single.num_queries.tolist() == [count]
        assert together.queries.padding_mask[i].tolist() == [j >= count for j in range(max(counts))]
        for kind in ("logits", "boxes"):
            ours = getattr(together.queries, kind)[:, i, :count]
            torch.testing.assert_close(ours, getattr(single.queries, kind)[:, 0], rtol=0, atol=1e-5)
            torch.testing.assert_close(
                getattr(together.proposals, kind)[:, i], getattr(single.proposals, kind)[:, 0], rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("name", SYSTEMS)
def test_decoder_losses_and_gradients_of_an_image_do_not_depend_on_the_others(name: str) -> None:
    config, detector, images, mask = case(name)
    targets = [random_target(count, seed=i) for i, count in enumerate((3, 9, 0))]
    for i in range(2):
        rows = slice(i, i + 1)
        losses, gradient, _ = decoder_losses(config, detector, images[rows], mask[rows], targets[rows], image=0)
        beside, gradients, _ = decoder_losses(config, detector, images, mask, targets, image=i)
        assert losses.keys() == beside.keys()
        for key, value in losses.items():
            torch.testing.assert_close(beside[key], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradients[i], gradient[0], rtol=1e-3, atol=1e-5 * float(gradient.abs().max()) + 1e-7)
        others = [gradients[j] for j in range(3) if j != i]
        assert all(float(other.abs().max()) == 0 for other in others)


def decoder_losses(
    config: Config, detector: nn.Module, images: Tensor, mask: Tensor, targets: list, *, image: int
) -> tuple[dict[str, Tensor], Tensor, DetectorOutput]:
    """Un-normalised decoder losses of one image, and their gradient in every image's pixels."""
    leaf = images.clone().requires_grad_()
    output = detector(leaf, mask)
    criterion = build_criterion(config)
    _, matched = criterion.matched_sets(output, targets, criterion.match(output, targets))[0]
    losses = {
        f"layer{layer}.{kind}": value
        for kind, sums in criterion.decoder(matched).items()
        for layer, value in enumerate(sums[:, image])
    }
    (gradient,) = torch.autograd.grad(torch.stack(list(losses.values())).sum(), leaf)
    return {name: value.detach() for name, value in losses.items()}, gradient, output


@pytest.mark.parametrize("name", DYNAMIC)
def test_predictions_are_those_of_the_images_own_queries(name: str) -> None:
    config, detector, images, mask = case(name)
    with torch.no_grad():
        output = detector(images, mask)
    detections = build_postprocess(config)(output, [(SIDE, SIDE)] * 3, [(SIDE, SIDE)] * 3)
    assert [len(found.scores) for found in detections] == output.num_queries.tolist()


@pytest.mark.parametrize("classification", ["softmax", "focal"])
def test_padded_queries_never_become_predictions(classification: str) -> None:
    _config, detector, images, mask = case("dino_d3q_aitodv2")
    with torch.no_grad():
        output = detector(images, mask)
    padded = output.queries.padding_mask
    assert bool(padded.any())
    queries = replace(
        output.queries,
        logits=output.queries.logits.masked_fill(padded[..., None], 50.0),
        boxes_unact=output.queries.boxes_unact.masked_fill(padded[..., None], -1.0),
    )
    sizes = [(SIDE, SIDE)] * 3
    postprocess = PostProcess(classification=classification, max_detections=10**6)
    expected = postprocess(output, sizes, sizes)
    for found, clean in zip(postprocess(replace(output, queries=queries), sizes, sizes), expected, strict=True):
        assert torch.equal(found.boxes, clean.boxes)
        assert torch.equal(found.scores, clean.scores)
        assert float(found.scores.max()) < 1


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_return_the_best_pairs_of_query_and_class(name: str) -> None:
    config, detector, images, mask = case(name)
    with torch.no_grad():
        output = detector(images, mask)
    for i, found in enumerate(build_postprocess(config)(output, [(SIDE, SIDE)] * 3, [(2 * SIDE, SIDE)] * 3)):
        best = output.queries.logits[-1, i].sigmoid().flatten().sort(descending=True).values
        torch.testing.assert_close(found.scores, best[: config.model.num_queries])
        assert bool((found.boxes[:, [1, 3]] <= 2 * SIDE).all())
        assert float(found.boxes[:, [1, 3]].max()) > SIDE  # original pixels


def test_an_image_smaller_than_its_budget_gets_as_many_queries_as_tokens() -> None:
    config = small_config("dino_d3q_aitodv2", "model.num_queries=2000", "model.d3q.min_queries=1500")
    images, mask = random_images([(64, 48)])
    with torch.no_grad():
        output = small_detector(config).eval()(images, mask)
    tokens = output.proposals.logits.shape[2]
    assert tokens < 1500
    assert output.num_queries.tolist() == [tokens]
