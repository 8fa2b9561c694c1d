"""Agreement with the published code, in every recorded number.

The files are in the folder of the environment variable D3Q_GOLDENS (default tests/data/goldens) and are distinguished
by their meta. `pytest -s` prints the largest deviation of every group of tensors in every file.

Deformable attention runs in grid_sample, as it did when the numbers were recorded: another order of summation can swap
two queries whose scores differ by 1e-7, which is no disagreement. D3Q_OPS_BACKEND takes another backend; `tests/ops`
compares them all with the definition.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from configs.schema import Config
from d3q import density_focal_loss, density_target
from engine.optim import build_optimizer
from models.build import build_criterion
from models.denoising import denoising_mask
from ops.backends import forced_backend
from tests.reference.goldens import (
    DEVIATIONS,
    GOLDENS,
    Golden,
    GoldenTarget,
    assert_close,
    config_of,
    detector_of,
    golden_paths,
    kind_of,
    load_golden,
    note_deviation,
    rename,
)
from tests.reference.runs import (
    Matching,
    Training,
    detector_for,
    evaluate,
    forward,
    image_sizes,
    loss_name,
    queries_of,
    recorded_noise,
    recorded_targets,
    recorded_train_step,
    train_step,
)
from tests.reference.units import assert_same_visibility, check_unit, unit_cases

EVAL = {"atol": 1e-4}
PIXELS = {"atol": 1e-3}
LOSS = {"rtol": 1e-4, "atol": 1e-6}
SUM = {"atol": 1e-4, "rtol": 1e-6}  # sums over a whole map: float32 resolves their size only relatively
FLOAT32_EPS = float(torch.finfo(torch.float32).eps)

MODELS = golden_paths("model")
TRAJECTORIES = golden_paths("trajectory")
for_models = pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
for_inferences = pytest.mark.parametrize("unpadded", [False, True], ids=["batch", "unpadded"])


@pytest.fixture(scope="module", autouse=True)
def _deviations() -> Iterator[None]:
    """The backend; and with -s, one line per file and group of tensors."""
    DEVIATIONS.clear()
    with forced_backend(os.environ.get("D3Q_OPS_BACKEND") or "grid_sample"):
        yield
    print("\nlargest deviation from the recorded numbers (allowed there)")
    for (file, group), (deviation, tolerance) in sorted(DEVIATIONS.items()):
        print(f"  {file:32} {group:40} {deviation:9.2e} ({tolerance:.1e})")


def test_there_are_files_and_each_is_understood() -> None:
    paths = golden_paths()
    assert paths, f"no *.npz in {GOLDENS}"
    unknown = [path.name for path in paths if kind_of(path) == "unknown"]
    assert not unknown, f"meta of an unknown kind: {unknown}"


# Inference


@for_inferences
@for_models
def test_features_and_memory(path: Path, unpadded: bool) -> None:
    golden, run = load_golden(path), evaluate(path, unpadded=unpadded)
    prefix = prefix_of(unpadded)
    for level, feature in enumerate(run.levels):
        key = f"{prefix}feat{level}"
        if key in golden:
            recorded = golden[key]
            assert_close(golden, f"{prefix}feat", feature[:, : recorded.shape[1]], recorded, **EVAL)
            scale = float(golden[f"{key}_abs_sum"])
            for name, total in (("sum", feature.double().sum()), ("abs_sum", feature.double().abs().sum())):
                relative = torch.stack([total / scale, golden[f"{key}_{name}"] / scale])
                assert_close(golden, f"{prefix}feat_{name} / abs_sum", relative[0], relative[1], atol=1e-5)
    assert golden.count(f"{prefix}feat{{}}") in (0, len(run.levels))
    for name, ours in (("memory", run.memory), ("output_memory", run.proposals.features)):
        if f"{prefix}{name}" in golden:
            assert_close(golden, f"{prefix}{name}", ours, golden[f"{prefix}{name}"], **EVAL)


@for_models
def test_encoder_proposals(path: Path) -> None:
    golden, run = load_golden(path), evaluate(path, unpadded=False)
    assert_close(golden, "eval/output_proposals", run.anchors_unact, golden["eval/output_proposals"], **EVAL)
    assert_close(golden, "eval/enc_outputs_class", run.proposals.logits, golden["eval/enc_outputs_class"], **EVAL)
    boxes = run.proposals.boxes_unact.sigmoid()
    assert_close(golden, "eval/enc_outputs_coord", boxes, golden["eval/enc_outputs_coord"], **EVAL)


@for_inferences
@for_models
def test_density_and_query_counts(path: Path, unpadded: bool) -> None:
    golden, output = load_golden(path), evaluate(path, unpadded=unpadded).output
    prefix = prefix_of(unpadded)
    if detector_for(path)[0].model.d3q is None:
        assert "density_map" not in output.aux
        assert f"{prefix}density_map" not in golden
        return
    assert_close(golden, f"{prefix}density_map", output.aux["density_map"], golden[f"{prefix}density_map"], **EVAL)
    assert_close(golden, f"{prefix}density_sum", output.aux["predicted_count"], golden[f"{prefix}density_sum"], **SUM)
    assert output.num_queries.tolist() == golden[f"{prefix}query_num"].tolist()


@for_inferences
@for_models
def test_selected_queries(path: Path, unpadded: bool) -> None:
    """Invalid tokens have equal scores and equal references: they are interchangeable."""
    golden, run = load_golden(path), evaluate(path, unpadded=unpadded)
    prefix = prefix_of(unpadded)
    valid = run.anchors_unact.isfinite().all(-1)
    for i in range(len(run.selected)):
        recorded = golden[f"{prefix}topk_indices/{i}"]
        ours = run.selected[i, : len(recorded)]
        assert int(run.output.num_queries[i]) == len(recorded)
        assert torch.equal(valid[i, ours], valid[i, recorded])
        finite = valid[i, recorded]
        assert torch.equal(ours[finite], recorded[finite])
        boxes = run.output.initial_boxes[i, : len(recorded)]
        assert_close(golden, f"{prefix}init_reference", boxes, golden[f"{prefix}init_reference/{i}"], **EVAL)


@for_models
def test_margin_of_the_selection(path: Path) -> None:
    golden, run = load_golden(path), evaluate(path, unpadded=False)
    detector = detector_for(path)[1]
    for i in range(golden.count("eval/topk_margin/{}")):
        logits = run.proposals.logits[i]
        scores = logits[:, 0] if detector.class_agnostic else logits.max(-1).values
        last, next_one = scores.sort(descending=True).values[int(run.output.num_queries[i]) - 1 :][:2]
        assert_close(golden, "eval/topk_margin", last - next_one, golden[f"eval/topk_margin/{i}"], **EVAL)


@for_inferences
@for_models
def test_every_decoder_layer(path: Path, unpadded: bool) -> None:
    golden, run = load_golden(path), evaluate(path, unpadded=unpadded)
    prefix = prefix_of(unpadded)
    for i, count in enumerate(run.output.num_queries.tolist()):
        for name, ours in (("all_cls", run.output.queries.logits), ("all_box", run.output.queries.boxes)):
            assert_close(golden, f"{prefix}{name}", ours[:, i, :count], golden[f"{prefix}{name}/{i}"], **EVAL)


@for_inferences
@for_models
def test_final_predictions(path: Path, unpadded: bool) -> None:
    golden, run = load_golden(path), evaluate(path, unpadded=unpadded)
    prefix = prefix_of(unpadded)
    for i, detections in enumerate(run.detections):
        recorded = {name: golden[f"{prefix}pred/{i}/{name}"] for name in ("bboxes", "scores", "labels")}
        order = order_of_equal_scores(detections.boxes, detections.labels, recorded)
        assert_close(golden, f"{prefix}pred/scores", detections.scores, recorded["scores"], **EVAL)
        assert_close(golden, f"{prefix}pred/bboxes", detections.boxes[order], recorded["bboxes"], **PIXELS)
        assert torch.equal(detections.labels[order], recorded["labels"])


def order_of_equal_scores(boxes: Tensor, labels: Tensor, recorded: dict[str, Tensor]) -> Tensor:
    """Order of our predictions that is the recorded one; it may differ from ours within runs of equal scores."""
    scores = recorded["scores"]
    run = torch.cat([torch.zeros(1), (scores[:-1] - scores[1:] > EVAL["atol"] / 10).float()]).cumsum(0)
    order = torch.arange(len(scores))
    for members in (torch.nonzero(run == number).flatten() for number in run.unique()):
        distance = torch.cdist(boxes[members], recorded["bboxes"][members], p=1)
        distance += 1e6 * (labels[members][:, None] != recorded["labels"][members])
        for column in range(len(members)):
            row = int(distance[:, column].argmin())
            order[members[column]] = members[row]
            distance[row] = torch.inf
    return order


def prefix_of(unpadded: bool) -> str:
    return "eval_unpadded/" if unpadded else "eval/"


# Training


@for_models
def test_training_outputs(path: Path) -> None:
    golden, output = load_golden(path), recorded_train_step(path).output
    for name, ours in (("enc_outputs_class", output.proposals.logits), ("enc_outputs_coord", output.proposals.boxes)):
        if f"train/{name}" in golden:
            assert_close(golden, f"train/{name}", ours[0], golden[f"train/{name}"], **EVAL)
    calls = golden.count("train/all_cls/{}")
    assert calls in (1, len(output.num_queries))
    for i in range(calls):
        for name, kind in (("all_cls", "logits"), ("all_box", "boxes")):
            ours = getattr(output.queries, kind)
            if calls > 1:  # one call per image
                ours = ours[:, i : i + 1, : int(output.num_queries[i])]
            if output.denoising is not None:
                ours = torch.cat([getattr(output.denoising, kind), ours], dim=2)
            assert_close(golden, f"train/{name}", ours, golden[f"train/{name}/{i}"], **EVAL)


@for_models
def test_density_target_and_loss(path: Path) -> None:
    golden, run = load_golden(path), recorded_train_step(path)
    if "train/density_target" not in golden:
        assert "density" not in run.losses
        return
    rows, columns = golden["train/density_map"].shape[-2:]
    targets = recorded_targets(golden)
    size = tuple(golden["in/images"].shape[-2:])
    maps = torch.stack([density_target(target.boxes_xyxy, (rows, columns), size) for target in targets])
    assert_close(golden, "train/density_target", maps[:, None], golden["train/density_target"], atol=1e-6)
    assert torch.equal(maps[:, None] > 0, golden["train/density_target"] > 0)
    assert_close(golden, "train/density_map", run.output.aux["density_map"], golden["train/density_map"], **EVAL)
    weight = detector_for(path)[0].criterion.density_weight
    total = weight * density_focal_loss(golden["train/density_map"], golden["train/density_target"])
    factor = total / run.losses["density"]
    assert_close(golden, "train/density_avg_factor", factor, golden["train/density_avg_factor"], rtol=1e-4)


@for_models
def test_every_loss(path: Path) -> None:
    golden = load_golden(path)
    recorded = dict(zip(golden.arrays["train/loss_names"].tolist(), golden["train/loss_values"], strict=True))
    losses = recorded_train_step(path).losses
    compare_losses(golden, "train/loss", losses, recorded)
    total = torch.stack(list(losses.values())).sum()
    assert_close(golden, "train/loss_total", total, golden["train/loss_total"], **LOSS)


def compare_losses(golden: Golden, group: str, losses: dict[str, Tensor], recorded: dict[str, Tensor]) -> None:
    layers = golden.meta["config"]["decoder"]["num_layers"]
    names = {loss_name(name, layers): name for name in recorded}
    assert set(names) == set(losses)
    for ours, published in names.items():
        assert_close(golden, f"{group}: {published}", losses[ours], recorded[published], **LOSS)


@for_models
def test_every_assignment(path: Path) -> None:
    """Another assignment of the same total cost is as good; it is printed."""
    golden, run = load_golden(path), recorded_train_step(path)
    calls = assignments_in_published_order(golden, run)
    assert golden.count("train/assign/{}") == len(calls)
    differing = 0
    for j, call in enumerate(calls):
        recorded, ours = golden[f"train/assign/{j}"].long(), call.vector()
        assert recorded.shape == ours.shape
        if torch.equal(ours, recorded):
            continue
        differing += 1
        totals = call.total(ours), call.total(recorded)
        print(f"{path.name}: assignment {j} differs in {int((ours != recorded).sum())} rows, total cost {totals}")
        assert int((ours > 0).sum()) == int((recorded > 0).sum())
        assert totals[0] == pytest.approx(totals[1], rel=1e-6)
    note_deviation(golden, "train/assign (assignments that differ)", differing, 0)


def assignments_in_published_order(golden: Golden, run: Training) -> list[Matching]:
    """Decoder, then encoder; the decoder's image by image where the losses are normalised per image."""
    images = len(run.encoder_matchings)
    decoder = run.decoder_matchings
    if detector_for(golden.path)[0].criterion.decoder_normalizer == "image":
        decoder = [matching for i in range(images) for matching in decoder[i::images]]
    return decoder + run.encoder_matchings


@for_models
def test_gradient_norms(path: Path) -> None:
    golden, run = load_golden(path), recorded_train_step(path)
    relative = max(1e-3, 3 * golden.meta["noise_floor_gradnorm_rel"])
    norms = dict(zip(golden.arrays["train/grad_norm_names"].tolist(), golden["train/grad_norms"], strict=True))
    expected = {rename(golden, name) for name, norm in norms.items() if norm >= 0}
    unexpected = {name for name, gradient in run.gradients.items() if name not in expected and gradient.abs().sum() > 0}
    assert expected <= set(run.gradients)
    assert not unexpected
    for name, norm in norms.items():
        if norm >= 0:
            ours = run.gradients[rename(golden, name)].norm()
            assert_close(golden, "train/grad_norms", ours, norm.float(), atol=1e-6, rtol=relative)
            note_deviation(golden, "train/grad_norms, relative", float(abs(ours - norm) / norm.clamp(1e-3)), relative)


@for_models
def test_full_gradients(path: Path) -> None:
    golden, run = load_golden(path), recorded_train_step(path)
    relative = max(1e-3, 3 * golden.meta["noise_floor_gradnorm_rel"])
    for key in golden.keys("train/grad/"):
        name, recorded = rename(golden, key.removeprefix("train/grad/")), golden[key]
        distance = float((run.gradients[name] - recorded).norm())
        size = float(recorded.norm())
        note_deviation(golden, "train/grad, relative", distance / max(size, 1e-3), relative)
        assert distance <= 1e-6 + relative * size, f"{name}: {distance} of {size}"


@for_models
def test_denoising_queries(path: Path) -> None:
    golden, output = load_golden(path), recorded_train_step(path).output
    if "train/dn/label_query" not in golden:
        assert output.denoising_queries is None
        return
    queries, denoising = queries_of(output.denoising_queries), detector_for(path)[1].denoising
    assert queries.num_groups == int(golden["train/dn/num_groups"])
    labels = torch.cat([target.labels for target in recorded_targets(golden)]).repeat(2 * queries.num_groups)
    noise = recorded_noise(golden, "train/dn/")
    assert torch.equal(denoising._flip(labels, noise), golden["train/dn/noisy_labels"])
    assert_close(golden, "train/dn/label_query", queries.content, golden["train/dn/label_query"], atol=1e-6)
    assert_close(golden, "train/dn/bbox_query", queries.boxes_unact, golden["train/dn/bbox_query"], **EVAL)
    shape = golden["train/dn/attn_mask_shape"].tolist()
    mask = denoising_mask(queries, output.queries.logits.shape[2], mask_padding=False)[0]
    bits = np.unpackbits(golden.arrays["train/dn/attn_mask_packed"], count=shape[0] * shape[1])
    assert_same_visibility(mask, torch.from_numpy(bits).view(*shape).bool())


DEGENERATE = [(path, name) for path in MODELS for name in load_golden(path).meta.get("extra", {})]
FRESH_NOISE_SEED = 7


@pytest.mark.parametrize(("path", "name"), DEGENERATE, ids=lambda value: getattr(value, "stem", value))
def test_losses_of_images_without_objects(path: Path, name: str) -> None:
    golden = load_golden(path)
    without = {
        "losses_all_images_empty": tuple(range(len(image_sizes(golden)))),
        "losses_second_image_empty": (1,),
    }
    losses = train_step(path, without=without[name], seed=FRESH_NOISE_SEED).losses
    recorded = {key: torch.tensor(value) for key, value in golden.meta["extra"][name].items()}
    config = detector_for(path)[0]
    if name == "losses_all_images_empty" and config.model.d3q and config.model.detector == "deformable_detr":
        # Differs from the reference: there the divisor is 0 + the float32 epsilon, here it is at least one.
        corrected = recorded.pop("loss_densitymap") * FLOAT32_EPS
        assert_close(golden, f"{name}: loss_densitymap", losses.pop("density"), corrected, rtol=1e-3)
    compare_losses(golden, name, losses, recorded)


# Single functions


UNITS = [(path, check, case) for path in golden_paths("units") for check, case in unit_cases(load_golden(path))]


@pytest.mark.parametrize(("path", "check", "case"), UNITS, ids=lambda value: getattr(value, "stem", value))
def test_functions(path: Path, check: str, case: str) -> None:
    check_unit(load_golden(path), check, case)


# Ten optimiser steps


@pytest.fixture(params=TRAJECTORIES, ids=lambda path: path.stem)
def trajectory(request: pytest.FixtureRequest) -> Golden:
    return load_golden(request.param)


def test_optimiser_settings(trajectory: Golden) -> None:
    config = config_of(trajectory.meta)
    detector = detector_of(trajectory, config)
    optimizer = build_optimizer(detector, config.optim)
    names = {parameter: name for name, parameter in detector.named_parameters()}
    ours = {
        names[parameter]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    recorded = {rename(trajectory, name): pair for name, pair in trajectory.meta["lr_wd_per_parameter"].items()}
    assert set(ours) == set(recorded)
    for name, pair in recorded.items():
        assert ours[name] == pytest.approx(pair, rel=1e-9), name
    assert {parameter.requires_grad for parameter in names if names[parameter] in ours} == {True}


def test_ten_steps(trajectory: Golden) -> None:
    golden = trajectory
    config = config_of(golden.meta)
    detector = detector_of(golden, config).train()
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    optimizer = build_optimizer(detector, config.optim)
    for step in range(golden.meta["steps"]):
        losses = trajectory_losses(golden, config, detector, step)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(detector.parameters(), config.optim.clip_grad_norm)
        optimizer.step()
        prefix = f"step/{step}"
        recorded = dict(
            zip(golden.arrays[f"{prefix}/loss_names"].tolist(), golden[f"{prefix}/loss_values"], strict=True)
        )
        layers = golden.meta["config"]["decoder"]["num_layers"]
        assert {loss_name(name, layers) for name in recorded} == set(losses)
        assert_close(golden, "step/loss_total", total, golden[f"{prefix}/loss_total"], rtol=1e-3)
        assert_close(golden, "step/grad_norm", norm, golden[f"{prefix}/grad_norm"], rtol=1e-2)
    after = detector.state_dict()
    changes = {name: (after[name] - before[name]).norm() for name in before if before[name].is_floating_point()}
    for key in golden.keys("final_delta_norm/"):
        name = rename(golden, key.removeprefix("final_delta_norm/"))
        assert_close(golden, "final_delta_norm", changes[name], golden[key], rtol=1e-2)
    total_change = torch.stack(list(changes.values())).norm()
    assert_close(golden, "final_total_delta", total_change, golden["final_total_delta"], rtol=1e-2)


def trajectory_losses(golden: Golden, config: Config, detector: torch.nn.Module, step: int) -> dict[str, Tensor]:
    prefix = f"step/{step}"
    targets = [
        GoldenTarget(golden[f"{prefix}/gt/{j}/boxes"], golden[f"{prefix}/gt/{j}/labels"], tuple(size))
        for j, size in enumerate(golden.meta["img_shapes"])
    ]
    output = forward(detector, golden[f"{prefix}/images"], targets, recorded_noise(golden, f"{prefix}/dn/"))
    return build_criterion(config)(output, targets)
