"""The `fidelity:` block: each switch reaches what it is for, and changes nothing else."""

import pytest
import torch

from models.build import build_criterion, build_detector
from models.denoising import Denoising
from tests.support.shrunken import SIDE, random_images, random_target, small_config, small_detector

CONFIG = "dino_d3q_aitodv2"


def test_published_is_the_default() -> None:
    published = [
        "fidelity.density_merge=max",
        "fidelity.mask_denoising_padding=false",
        "fidelity.max_denoising_queries=null",
        "fidelity.count_padding=true",
        "fidelity.round_objects=true",
        "fidelity.log_size_form=clamped",
    ]
    assert small_config(CONFIG) == small_config(CONFIG, *published)


@pytest.mark.parametrize("value", ["true", "false"])
@pytest.mark.parametrize("name", ["round_objects", "count_padding"])
def test_switches_of_the_budget_reach_it(name: str, value: str) -> None:
    budget = build_detector(small_config(CONFIG, f"fidelity.{name}={value}")).query_budget
    assert getattr(budget, name) == (value == "true")


def test_a_lower_ceiling_needs_no_other_weights() -> None:
    images, mask = random_images([(SIDE, SIDE)])
    detector = small_detector(small_config(CONFIG)).eval()
    lower = build_detector(small_config(CONFIG, "model.d3q.max_queries=20"))
    lower.load_state_dict(detector.state_dict())
    assert int(detector(images, mask).num_queries) == 90
    assert int(lower.eval()(images, mask).num_queries) == 20


@pytest.mark.parametrize("merge", ["max", "sum"])
def test_density_merge_reaches_the_loss(merge: str) -> None:
    (density_loss,) = build_criterion(small_config(CONFIG, f"fidelity.density_merge={merge}")).auxiliary_losses
    assert density_loss.merge == merge


def test_log_size_forms_give_the_same_losses_unless_a_box_vanishes() -> None:
    images, mask = random_images([(SIDE, SIDE)] * 2)
    targets = [random_target(4), random_target(7, seed=1)]
    detector = small_detector(small_config(CONFIG)).eval()
    for vanished in (False, True):
        if vanished:
            detector.decoder.heads.box_heads[-1].deltas.bias.data[2:] = -60
        output = detector(images, mask)
        losses, gradients = {}, {}
        for form in ("clamped", "logsigmoid"):
            loss = build_criterion(small_config(CONFIG, f"fidelity.log_size_form={form}"))(output, targets)["box"]
            bias = detector.decoder.heads.box_heads[-1].deltas.bias
            losses[form] = float(loss.detach())
            gradients[form] = torch.autograd.grad(loss, bias, retain_graph=True)[0][2:]
        if vanished:
            assert not gradients["clamped"].any()
            assert bool((gradients["logsigmoid"] < -0.1).all())
        else:
            assert losses["clamped"] == pytest.approx(losses["logsigmoid"], rel=1e-5)
            torch.testing.assert_close(gradients["clamped"], gradients["logsigmoid"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("limit", "slots"), [("null", 80), ("80", 80), ("20", 20), ("21", 20)])
def test_denoising_queries_of_a_crowd(limit: str, slots: int) -> None:
    config = small_config(CONFIG, f"fidelity.max_denoising_queries={limit}")
    detector = small_detector(config).train()
    images, mask = random_images([(SIDE, SIDE)] * 3)
    targets = [random_target(40), random_target(3, seed=1), random_target(0)]
    output = detector(images, mask, targets)
    queries = output.denoising_queries
    assert queries is not None
    assert queries.content.shape[1] == slots
    kept = min(40, slots // 2)
    assert [len(objects) for objects in queries.objects] == [kept, 3, 0]
    assert queries.objects[0].unique().tolist() == queries.objects[0].tolist()
    assert queries.objects[1].tolist() == [0, 1, 2]
    losses = build_criterion(config)(output, targets)
    assert all(bool(loss.isfinite()) for loss in losses.values())
    assert float(losses["denoising.box"].detach()) > 0


def test_a_limited_choice_keeps_boxes_and_labels_together() -> None:
    """Without noise, each positive slot equals its object; another step chooses other objects."""
    torch.manual_seed(0)
    denoising = Denoising(
        hidden_dim=8, num_classes=8, num_queries=30, label_noise=0.0, box_noise=0.0, max_queries=24
    )  # fmt: skip
    target = random_target(50)
    first, second = denoising([target]), denoising([target])
    assert not torch.equal(first.objects[0], second.objects[0])
    for queries in (first, second):
        chosen = queries.objects[0]
        assert (queries.num_groups, queries.group_size, len(chosen)) == (1, 24, 12)
        torch.testing.assert_close(queries.boxes_unact[0, :12].sigmoid(), target.boxes[chosen], rtol=0, atol=1e-5)
        assert torch.equal(queries.content[0, :12], denoising.label_embedding(target.labels[chosen]))


def test_a_limit_below_the_asked_for_queries_takes_fewer_groups() -> None:
    def groups(limit: int | None) -> int:
        options = {"hidden_dim": 8, "num_classes": 8, "num_queries": 100, "label_noise": 0.5, "box_noise": 1.0}
        return Denoising(max_queries=limit, **options)([random_target(5)]).num_groups

    assert (groups(None), groups(200), groups(60), groups(10)) == (20, 20, 6, 1)
