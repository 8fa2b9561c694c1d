"""How many queries are decoded: no more than an image needs, whatever the others need; and padding changes nothing."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.build import build_criterion
from models.decoder import decode_in_groups, similar_counts
from models.proposals import query_blocks, select_queries
from models.structures import Memory, SelectedProposals
from tests.support.shrunken import (
    DYNAMIC,
    SIDE,
    random_images,
    random_target,
    small_config,
    small_detector,
    spread_counts,
)

NO_DROPOUT = ["model.encoder.dropout=0.0", "model.decoder.dropout=0.0"]


def test_images_of_similar_counts_share_a_group() -> None:
    assert similar_counts([30, 1500, 40, 20]) == [[1], [2, 0, 3]]
    assert similar_counts([5, 5, 5]) == [[0, 1, 2]]
    assert similar_counts([4, 1, 2]) == [[0, 2], [1]]


class Decoding:
    """A detector's decoder on random memory of as many images as there are counts."""

    def __init__(self, name: str, counts: list[int]) -> None:
        self.detector = small_detector(small_config(name)).eval()
        images, mask = random_images([(SIDE, SIDE)] * len(counts))
        features = self.detector.tokenizer(self.detector.neck(self.detector.backbone(images)), mask)
        tokens = self.detector.encoder(features)
        self.memory = Memory(tokens, features)
        proposals = self.detector.proposal_head(tokens, features)
        self.selected = select_queries(proposals, torch.tensor(counts), class_agnostic=False)
        boxes = self.selected.boxes_unact.sigmoid()
        if name.startswith("dino"):
            self.queries = [self.detector.content_queries.weight[: boxes.shape[1]].expand(len(boxes), -1, -1), boxes]
        else:
            self.queries = [*self.detector.query_maker(boxes), boxes]

    def padded(self) -> tuple[Tensor, Tensor]:
        blocks = query_blocks(self.selected.padding_mask, self.selected.counts)
        return self.detector.decoder(*self.queries, self.memory, blocks)

    def grouped(self) -> tuple[Tensor, Tensor]:
        return decode_in_groups(self.detector.decoder, self.queries, self.memory, self.selected)

    def flops(self) -> int:
        with FlopCounterMode(display=False) as counter:
            self.grouped()
        return counter.get_total_flops()


@torch.no_grad()
@pytest.mark.parametrize("name", DYNAMIC)
def test_groups_predict_what_the_padded_batch_does(name: str) -> None:
    counts = [12, 90, 30, 80, 13]
    decoding = Decoding(name, counts)
    for ours, expected in zip(decoding.grouped(), decoding.padded(), strict=True):
        assert ours.shape == expected.shape
        for image, count in enumerate(counts):
            torch.testing.assert_close(ours[:, image, :count], expected[:, image, :count], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("name", DYNAMIC)
def test_the_work_of_the_decoder_follows_the_count(name: str) -> None:
    """Beyond the projection of the memory; self-attention makes it a little less than proportional."""
    config = small_config(name)
    few, many, mixed = (Decoding(name, counts) for counts in ([10], [90], [10, 90]))
    tokens, width = few.memory.tokens.shape[1:]
    projection = config.model.decoder.num_layers * 2 * tokens * width * width
    assert (few.flops() - projection) * 90 <= (many.flops() - projection) * 10
    assert mixed.flops() == few.flops() + many.flops()


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_detector_in_evaluation_decodes_in_groups(name: str) -> None:
    detector = small_detector(small_config(name)).eval()
    images, mask = random_images([(SIDE, SIDE)] * 2)
    images[0] = 1.0
    spread_counts(detector, images, mask, fewest=2, most=29)
    decoded: list[int] = []
    detector.decoder.layers[0].register_forward_hook(lambda m, inputs, result: decoded.append(result.shape[:2].numel()))
    with torch.inference_mode():
        output = detector.eval()(images, mask)
    few, many = output.num_queries.tolist()
    assert few * 2 < many
    assert sorted(decoded) == [few, many]
    assert output.queries.logits.shape[2] == many


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_bucket_changes_shapes_and_nothing_else(name: str) -> None:
    """In training; runtime.query_bucket."""
    results: list[tuple[SelectedProposals, dict[str, Tensor], Tensor]] = []
    images, mask = random_images([(SIDE, SIDE)] * 2)
    targets = [random_target(3), random_target(9, seed=1)]
    for bucket in (1, 45):
        config = small_config(name, *NO_DROPOUT, f"runtime.query_bucket={bucket}")
        detector = small_detector(config)
        spread_counts(detector, images, mask, fewest=60, most=12)
        torch.manual_seed(1)
        output = detector.train()(images, mask, targets)
        losses = build_criterion(config)(output, targets)
        torch.stack(list(losses.values())).sum().backward()
        gradient = nn.utils.parameters_to_vector(p.grad for p in detector.parameters() if p.grad is not None)
        results.append((output.queries, losses, gradient))
    (plain, losses, gradient), (padded, padded_losses, padded_gradient) = results
    assert plain.counts == padded.counts
    assert plain.logits.shape[2] == max(plain.counts) < 45
    assert padded.logits.shape[2] == 45
    torch.testing.assert_close(padded_losses, losses, rtol=1e-5, atol=1e-5)
    assert float((padded_gradient - gradient).norm()) <= 1e-4 * float(gradient.norm())
    with torch.no_grad():
        assert detector.eval()(images, mask).queries.logits.shape[2] == max(plain.counts)  # evaluation is not padded
