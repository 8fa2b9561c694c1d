"""Comparisons of single functions with their recorded numbers: one check per prefix of the keys of a units file."""

import re
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from d3q import LogSizeL1, density_focal_loss, density_target
from d3q.density_loss import gaussian_radius
from models.boxes import L1Distance, generalized_iou, inverse_sigmoid, xyxy_to_cxcywh
from models.criterion import sigmoid_focal_loss
from models.denoising import Denoising, NoiseDraws, denoising_mask
from models.matching.cost import MatchingCost, focal_class_cost, softmax_class_cost
from models.matching.hungarian import HungarianMatcher, MatchRequest, match
from models.position_encoding import encode_boxes, encode_map
from ops import ms_deform_attn
from ops.embedding_bag import ms_deform_attn_embedding_bag
from ops.reference import ms_deform_attn_reference
from tests.reference.goldens import Golden, GoldenTarget, assert_close, note_deviation
from tests.reference.runs import matchings_of

CLOSE = {"atol": 1e-4}
LOSS = {"rtol": 1e-4, "atol": 1e-6}
EXACT = {"atol": 1e-6}
LABEL_NOISE, BOX_NOISE = 0.5, 1.0
PUBLISHED_DENOISING_QUERIES = 100
FOCAL = {"alpha": 0.25, "gamma": 2.0}
NO_OBJECT_WEIGHT = 0.1
PUBLISHED_WIDTH = 256
MATCHERS = {  # classification, class cost, box cost, box distance, matches off the centre dropped
    "d3q_decoder": ("softmax", 1.0, 0.5, LogSizeL1(), False),
    "d3q_encoder": ("focal", 2.0, 0.5, LogSizeL1(), False),
    "base_cpu1_filter_lowq": ("focal", 2.0, 5.0, L1Distance(), True),
    "base_cpu1_no_filter": ("focal", 2.0, 5.0, L1Distance(), False),
}


def unit_cases(golden: Golden) -> Iterator[tuple[str, str]]:
    """(first part of the keys, case) of everything in the file; an unknown first part fails in `check_unit`."""
    yield from sorted({(key.split("/")[0], _case_of(key)) for key in golden.arrays if key != "match/img_shape"})
    for name in golden.meta.get("density_out_of_map", {}):
        yield "density_out_of_map", name


def _case_of(key: str) -> str:
    first, second, *_ = key.split("/")
    return second if first in ("density", "match", "cdn", "msda") else ""


def check_unit(golden: Golden, check: str, case: str) -> None:
    CHECKS[check](golden, case)


def _density(golden: Golden, case: str) -> None:
    if case == "kernel":
        _density_kernels(golden)
        return
    recorded = golden[f"density/{case}/target"]
    boxes = [golden[f"density/{case}/boxes/{i}"] for i in range(len(recorded))]
    image_size = tuple(golden[f"density/{case}/img_shape"].tolist())
    rows, columns = recorded.shape[-2:]
    ours = torch.stack([density_target(b, (rows, columns), image_size) for b in boxes])[:, None]
    assert_close(golden, "density target", ours, recorded, **EXACT)
    assert torch.equal(ours > 0, recorded > 0), "cells with mass differ"
    assert_close(golden, "density sum", ours.double().sum((1, 2, 3)), golden[f"density/{case}/sum"], atol=1e-4)
    assert sum(len(b) for b in boxes) == int(golden[f"density/{case}/avg_factor"]), "avg_factor is the object count"
    sides = torch.cat(boxes)
    height = (sides[:, 3] - sides[:, 1]) * (rows / image_size[0])
    width = (sides[:, 2] - sides[:, 0]) * (columns / image_size[1])
    radius = gaussian_radius(height, width)
    recorded_radius = golden[f"density/{case}/radius"]
    assert_close(golden, "density radius", radius, recorded_radius[:, 0], rtol=1e-5, atol=1e-5)
    assert torch.equal(radius.int().clamp(min=1), recorded_radius[:, 1].int()), "integer radii differ"


def _density_kernels(golden: Golden) -> None:
    for key in golden.keys("density/kernel/"):
        radius = int(key.rsplit("/", 1)[1])
        sides = torch.linspace(1, 20 * radius, 2000)
        fitting = sides[gaussian_radius(sides, sides).int() == radius]
        side = float(fitting[len(fitting) // 2])
        middle, cells = 4 * radius + 0.5, 8 * radius + 1
        box = torch.tensor([[middle - side / 2, middle - side / 2, middle + side / 2, middle + side / 2]])
        ours = density_target(box, (cells, cells), (cells, cells))
        span = slice(3 * radius, 5 * radius + 1)
        assert_close(golden, "density kernel", ours[span, span], golden[key], **EXACT)
        assert int((ours > 0).sum()) == int((golden[key] > 0).sum()), f"radius {radius}: more cells than recorded"


def _density_out_of_map(golden: Golden, case: str) -> None:
    rows, columns, half = 20, 30, 1.0
    centre = {
        "centre_right_of_map": (columns + 2.5, 10.5),
        "centre_far": (columns * 5.0, rows * 5.0),
        "centre_negative": (-2.5, 10.5),
        "centre_exact_edge": (float(columns), 10.5),
    }[case]
    box = torch.tensor([[centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half]])
    ours = density_target(box, (rows, columns), (rows, columns))
    recorded = golden.meta["density_out_of_map"][case]
    assert_close(golden, "density out of map", ours.sum(), torch.tensor(recorded["sum"]), **EXACT)
    assert int((ours > 0).sum()) == recorded["nonzero"], f"{int((ours > 0).sum())} cells have mass"


def _gaussian_radius(golden: Golden, case: str) -> None:
    height, width = golden["gaussian_radius/hw"].unbind(1)
    recorded = {"float32": golden["gaussian_radius/r_tensor_f32"], "float64": golden["gaussian_radius/r_python_f64"]}
    ours = {"float32": gaussian_radius(height, width), "float64": gaussian_radius(height.double(), width.double())}
    assert_close(golden, "gaussian_radius float32", ours["float32"], recorded["float32"], rtol=1e-5, atol=1e-5)
    assert_close(golden, "gaussian_radius float64", ours["float64"], recorded["float64"], rtol=1e-12, atol=1e-12)
    assert torch.equal(ours["float32"].int(), recorded["float32"].int()), "integer radii differ"


def _density_focal(golden: Golden, case: str) -> None:
    density, target = golden["density_focal/pred"], golden["density_focal/target"]
    recorded = golden["density_focal/elementwise"]
    elementwise = [
        density_focal_loss(d[None], t[None]) for d, t in zip(density.flatten(), target.flatten(), strict=True)
    ]
    assert_close(golden, "density_focal elementwise", torch.stack(elementwise).view_as(density), recorded, **LOSS)
    for key in golden.keys("density_focal/"):
        if not key.endswith("/loss"):
            continue
        name = key.split("/")[1]
        divisor = density.numel() if name == "None" else float(name) + float(torch.finfo(torch.float32).eps)
        leaf = density.clone().requires_grad_()
        loss = density_focal_loss(leaf, target) / divisor
        assert_close(golden, "density_focal loss", loss, golden[key], **LOSS)
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert_close(golden, "density_focal gradient", gradient, golden[f"density_focal/{name}/grad"], **LOSS)


def _up_to_a_factor(golden: Golden, group: str, loss: Tensor, leaf: Tensor, recorded: Tensor, gradient: Tensor) -> None:
    """The weight and the normalizer are not recorded: one factor must explain the loss and its whole gradient."""
    factor = recorded / loss.detach()
    assert float(factor) > 0, f"{group}: {float(recorded)} recorded, {float(loss.detach())} here"
    (ours,) = torch.autograd.grad(loss, leaf)
    assert_close(golden, f"{group} gradient", ours * factor, gradient, **LOSS)


def _tiny_l1(golden: Golden, case: str) -> None:
    target, weight = golden["tiny_l1/target"], golden["tiny_l1/weight"]
    leaf = golden["tiny_l1/pred"].requires_grad_()
    matched = weight[:, 0] > 0
    loss = LogSizeL1().aligned(leaf[matched], target[matched]).sum()
    _up_to_a_factor(golden, "tiny_l1", loss, leaf, golden["tiny_l1/w/loss"], golden["tiny_l1/w/grad"])
    nothing = LogSizeL1().aligned(leaf[:0], target[:0]).sum()
    assert_close(golden, "tiny_l1 without a match", nothing, golden["tiny_l1/all_zero_w/loss"])
    (gradient,) = torch.autograd.grad(nothing, leaf)
    assert_close(golden, "tiny_l1 without a match", gradient, golden["tiny_l1/all_zero_w/grad"])


def _giou(golden: Golden, case: str) -> None:
    leaf = golden["giou/pred"].requires_grad_()
    elementwise = 1 - generalized_iou(leaf, golden["giou/target"])
    assert_close(golden, "giou elementwise", elementwise, golden["giou/elementwise"], **CLOSE)
    weighted = golden["giou/grad"].abs().sum(1) > 0  # the recorded loss is of the matched rows
    loss = elementwise[weighted].sum()
    _up_to_a_factor(golden, "giou", loss, leaf, golden["giou/loss"], golden["giou/grad"])


def _focal(golden: Golden, case: str) -> None:
    leaf = golden["focal/logits"].requires_grad_()
    one_hot = F.one_hot(golden["focal/labels"], leaf.shape[1] + 1)[:, :-1].float()
    loss = sigmoid_focal_loss(leaf, one_hot, **FOCAL).sum()
    _up_to_a_factor(golden, "focal", loss, leaf, golden["focal/loss"], golden["focal/grad"])


def _ce(golden: Golden, case: str) -> None:
    leaf = golden["ce/logits"].requires_grad_()
    weight = torch.ones(leaf.shape[1])
    weight[-1] = NO_OBJECT_WEIGHT
    loss = F.cross_entropy(leaf, golden["ce/labels"], weight=weight, reduction="sum")
    _up_to_a_factor(golden, "cross-entropy", loss, leaf, golden["ce/loss"], golden["ce/grad"])


def _match(golden: Golden, case: str) -> None:
    prefix = f"match/{case}"
    size = tuple(golden["match/img_shape"].tolist())
    target = GoldenTarget(golden[f"{prefix}/gt_boxes"], golden[f"{prefix}/gt_labels"], size)
    pixels = golden[f"{prefix}/pred_boxes"]
    factor = pixels.new_tensor([size[1], size[0]] * 2)
    logits = {"softmax": golden[f"{prefix}/logits9"], "focal": golden[f"{prefix}/logits8"]}
    boxes, objects = xyxy_to_cxcywh(pixels) / factor, xyxy_to_cxcywh(target.boxes_xyxy) / factor
    costs = {
        "FocalLossCost": focal_class_cost(logits["focal"], **FOCAL)[:, target.labels],
        "ClassificationCost": softmax_class_cost(logits["softmax"])[:, target.labels],
        "TinyBBoxL1Cost": LogSizeL1().pairwise(boxes, objects),
        "BBoxL1Cost": L1Distance().pairwise(boxes, objects),
        "IoUCost_giou": -generalized_iou(pixels[:, None], target.boxes_xyxy[None]),
    }
    for key in golden.keys(f"{prefix}/cost/"):
        name, weight = re.fullmatch(r"(\w+)_w([\d.]+)", key.rsplit("/", 1)[1]).groups()
        assert_close(golden, f"match {name}", costs[name] * float(weight), golden[key], **CLOSE)
    for key in golden.keys(f"{prefix}/assign/"):
        if key.endswith("/gt_inds"):
            _assignment(golden, key, logits, boxes, target)


def _assignment(golden: Golden, key: str, logits: dict[str, Tensor], boxes: Tensor, target: GoldenTarget) -> None:
    classification, class_weight, box_weight, distance, drop = MATCHERS[key.split("/")[-2]]
    cost = MatchingCost(
        classification=classification, class_weight=class_weight, box_weight=box_weight, giou_weight=2.0,
        box_distance=distance, **FOCAL,
    )  # fmt: skip
    request = MatchRequest(
        HungarianMatcher(cost=cost, drop_off_centre=drop), logits[classification][None, None], boxes[None, None],
        [len(boxes)], [target], [target.labels],
    )  # fmt: skip
    (matching,) = matchings_of(request, *match([request]))
    ours, recorded = matching.vector(), golden[key].long()
    differing = int((ours != recorded).sum())
    note_deviation(golden, "match rows assigned differently", differing, 0)
    if differing:  # an equally good assignment
        totals = matching.total(ours), matching.total(recorded)
        print(f"{golden.path.name}: {key} differs in {differing} rows, total cost {totals}")
        assert int((ours > 0).sum()) == int((recorded > 0).sum()), f"{key}: another number of matches"
        assert abs(totals[0] - totals[1]) <= 1e-6 * abs(totals[1]), f"{key}: total cost {totals}"
        return
    labels = golden[key.replace("gt_inds", "labels")]
    assert torch.equal(labels[matching.query], target.labels[matching.target]), f"{key}: labels differ"


def _cdn(golden: Golden, case: str) -> None:
    prefix = f"cdn/{case}"
    targets = []
    for i in range(golden.count(f"{prefix}/boxes/{{}}")):
        size = tuple(golden[f"{prefix}/img_shape/{i}"].tolist())
        targets.append(GoldenTarget(golden[f"{prefix}/boxes/{i}"], golden[f"{prefix}/labels/{i}"], size))
    embedding = golden[f"{prefix}/label_embedding"]
    denoising = Denoising(
        hidden_dim=embedding.shape[1], num_classes=len(embedding), num_queries=PUBLISHED_DENOISING_QUERIES,
        label_noise=LABEL_NOISE, box_noise=BOX_NOISE,
    )  # fmt: skip
    denoising.label_embedding.weight.data.copy_(embedding)
    draws = NoiseDraws(*(golden[f"{prefix}/noise/{name}"] for name in ("label_p", "new_labels", "sign01", "part")))
    queries = denoising(targets, draws)
    slots, groups = golden[f"{prefix}/meta"].tolist()
    assert (queries.content.shape[1], queries.num_groups) == (slots, groups), "slots and groups"
    content = queries.content
    key = f"{prefix}/label_query"
    if key not in golden:
        key = f"{prefix}/label_query_head"
        content = content[:, : golden[key].shape[1]]
    assert_close(golden, "cdn label_query", content, golden[key], **EXACT)
    assert_close(golden, "cdn bbox_query", queries.boxes_unact, golden[f"{prefix}/bbox_query"], **CLOSE)
    shape = golden[f"{prefix}/mask_shape"].tolist()
    mask = denoising_mask(queries, int(golden[f"{prefix}/num_matching"]), mask_padding=False)[0]
    bits = np.unpackbits(golden.arrays[f"{prefix}/mask_packed"], count=shape[0] * shape[1])
    assert_same_visibility(mask, torch.from_numpy(bits).view(*shape).bool())


def assert_same_visibility(mask: Tensor, published: Tensor) -> None:
    """Ours contains the denoising queries' rows; all other queries see everything but the denoising queries."""
    front = len(mask)
    assert torch.equal(mask, published[:front]), "attention masks differ"
    assert bool(published[front:, :front].all())
    assert not bool(published[front:, front:].any())


def _msda(golden: Golden, case: str) -> None:
    prefix = f"msda/{case}"
    shapes = [tuple(shape) for shape in golden[f"{prefix}/shapes"].tolist()]
    for form in (ms_deform_attn_reference, ms_deform_attn_embedding_bag, ms_deform_attn):
        inputs = [golden[f"{prefix}/{name}"].requires_grad_() for name in ("value", "loc", "weight")]
        output = form(inputs[0], shapes, *inputs[1:])
        name = form.__name__.removeprefix("ms_deform_attn_")
        assert_close(golden, f"msda {name} output", output, golden[f"{prefix}/out"], **CLOSE)
        gradients = torch.autograd.grad(output, inputs, golden[f"{prefix}/grad_out"])
        for what, gradient in zip(("value", "loc", "weight"), gradients, strict=True):
            recorded = golden[f"{prefix}/grad_{what}"]
            if what == "loc" and form is not ms_deform_attn_reference:
                recorded = _derivative_on_our_side(golden, prefix, shapes, gradient)
            assert_close(golden, f"msda {name} gradient of {what}", gradient, recorded, atol=1e-4, rtol=1e-4)


def _derivative_on_our_side(golden: Golden, prefix: str, shapes: list[tuple[int, int]], gradient: Tensor) -> Tensor:
    """The recorded gradient of the locations; at a kink, the one-sided derivative that is nearest to ours.

    Bilinear interpolation bends where a sample meets the centre of a row or column of cells. Rounding decides
    which of the two derivatives a form gives there.
    """
    recorded = golden[f"{prefix}/grad_loc"]
    value, locations, weights = (golden[f"{prefix}/{name}"].double() for name in ("value", "loc", "weight"))
    cells = torch.tensor(shapes).flip(1)[:, None]
    corner = locations * cells - 0.5
    kink = ((corner - corner.round()).abs() < 1e-5).any(-1, keepdim=True)
    nearest = recorded.double()
    for side in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        shifted = (locations + 2e-5 * torch.tensor(side) / cells).requires_grad_()
        output = ms_deform_attn_reference(value, shapes, shifted, weights)
        (one_sided,) = torch.autograd.grad(output, shifted, golden[f"{prefix}/grad_out"].double())
        closer = (one_sided - gradient).abs().sum(-1, True) < (nearest - gradient).abs().sum(-1, True)
        nearest = torch.where(kink & closer, one_sided, nearest)
    note_deviation(golden, "msda share of samples at a kink", float(kink.double().mean()), 0.3)
    assert kink.double().mean() < 0.3, "most samples must be compared with the recorded gradient itself"
    return nearest


def _pos(golden: Golden, case: str) -> None:
    """The recording kept every n-th channel of the published width."""
    options = {"deformable": (10000.0, -0.5), "dino": (20.0, 0.0)}
    mask = golden["pos/mask"]
    for key in golden.keys("pos/"):
        name = key.removeprefix("pos/")
        if name == "mask":
            continue
        temperature, offset = options[name.removesuffix("_nomask")]
        padding = torch.zeros_like(mask[:1]) if name.endswith("_nomask") else mask
        ours = encode_map(padding, dim=PUBLISHED_WIDTH, temperature=temperature, offset=offset).permute(0, 3, 1, 2)
        step = PUBLISHED_WIDTH // golden[key].shape[1]
        assert_close(golden, f"position encoding {name}", ours[:, ::step], golden[key], **CLOSE)


def _enc(golden: Golden, case: str) -> None:
    boxes = golden["enc/boxes"]
    for key in golden.keys("enc/"):
        name = key.removeprefix("enc/")
        if found := re.fullmatch(r"coordinate_to_encoding_(\d+)", name):
            ours = encode_boxes(boxes, features=int(found[1]), order=(1, 0, 2, 3))
            assert_close(golden, "encode_boxes, DINO", ours, golden[key], **CLOSE)
        elif found := re.fullmatch(r"proposal_pos_embed_(\d+)_of_logits", name):
            sigmoids = inverse_sigmoid(boxes, eps=1e-5).sigmoid()
            ours = encode_boxes(sigmoids, features=int(found[1]), order=(0, 1, 2, 3))
            assert_close(golden, "encode_boxes, Deformable DETR", ours, golden[key], **CLOSE)
        elif found := re.fullmatch(r"inverse_sigmoid_(\d.*)", name):
            ours = inverse_sigmoid(golden["enc/inverse_sigmoid_in"], eps=float(found[1]))
            assert_close(golden, "inverse_sigmoid", ours, golden[key], atol=1e-6, rtol=1e-6)
        else:
            assert name in ("boxes", "inverse_sigmoid_in"), f"no counterpart of {key}"


CHECKS: dict[str, Callable[[Golden, str], None]] = {
    "density": _density,
    "density_out_of_map": _density_out_of_map,
    "gaussian_radius": _gaussian_radius,
    "density_focal": _density_focal,
    "tiny_l1": _tiny_l1,
    "giou": _giou,
    "focal": _focal,
    "ce": _ce,
    "match": _match,
    "cdn": _cdn,
    "msda": _msda,
    "pos": _pos,
    "enc": _enc,
}
