"""A detector's inference, part by part: time, peak memory, parameters, floating-point operations.

A shipped experiment with random weights on random images. Each part runs on the results of the parts before it; the
decoder for several query counts. "CPU seconds" are summed over threads, and vary less than wall seconds beside other
work.
"""

import argparse
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.attention import MSDeformAttn, QueryBlocks
from models.build import build_detector
from models.deformable_detr import DeformableDETR
from models.dino import DINO
from models.proposals import select_queries
from models.structures import Memory
from scripts.benchmarks.harness import Cell, Cost, Table, costs_alternately, peak_mebibytes, process_mebibytes
from scripts.benchmarks.scenes import add_scene_options, fix_queries, load_experiment, random_batch


def add_options(parser: argparse.ArgumentParser) -> None:
    add_scene_options(parser, side=800)
    parser.add_argument("--queries", type=int, nargs="+", default=[300, 900, 2000], help="of the decoder")


@torch.inference_mode()
def measure(options: argparse.Namespace) -> list[Table]:
    config, device = load_experiment(options), torch.device(options.device)
    detector = build_detector(config).to(device).eval()
    batch = random_batch(
        batch=options.batch, side=options.side, objects=0, num_classes=config.model.class_count, device=device
    )
    memory = Table("peak memory of the whole")
    for count in options.queries:
        fix_queries(detector, count)
        peak = peak_mebibytes(lambda: detector(batch.images, batch.padding_mask))
        memory.rows.append({"queries": count, "activations, MiB": peak, "process, MiB": process_mebibytes()})
    parts = detector_parts(detector, batch.images, batch.padding_mask, options.queries)
    costs = costs_alternately(parts, repeats=options.repeats)
    title = f"inference by part: {options.batch} x {options.side}x{options.side}"
    return [Table(title, [_row(name, costs[name], run, detector) for name, run in parts.items()]), memory]


def detector_parts(
    detector: DINO | DeformableDETR, images: Tensor, padding_mask: Tensor, query_counts: list[int]
) -> dict[str, Callable[[], object]]:
    """Each part on the results of those before it."""
    maps = detector.backbone(images)
    levels = detector.neck(maps)
    features = detector.tokenizer(levels, padding_mask)
    tokens = detector.encoder(features)
    proposals = detector.proposal_head(tokens, features)
    memory = Memory(tokens, features)

    def propose() -> object:
        return detector.query_budget(*detector.proposal_head(tokens, features).finest_map())

    def decode(count: int) -> object:
        counts = torch.full((len(images),), count, device=images.device)
        queries = select_queries(proposals, counts, class_agnostic=detector.class_agnostic)
        boxes = queries.boxes_unact.sigmoid()
        if isinstance(detector, DINO):
            content = detector.content_queries.weight[:count].expand(len(images), -1, -1)
            return detector.decoder(content, boxes, memory, QueryBlocks())
        content, position = detector.query_maker(boxes)
        return detector.decoder(content, position, boxes, memory, QueryBlocks())

    return {
        "backbone": lambda: detector.backbone(images),
        "neck": lambda: detector.neck(maps),
        "encoder": lambda: detector.encoder(detector.tokenizer(levels, padding_mask)),
        "proposals and density": propose,
        **{f"decoder, {count:,} queries": partial(decode, count) for count in query_counts},
    }


def _row(name: str, cost: Cost, run: Callable[[], object], detector: DINO | DeformableDETR) -> dict[str, Cell]:
    budget = detector.query_budget
    parts: dict[str, list[nn.Module]] = {
        "backbone": [detector.backbone],
        "neck": [detector.neck],
        "encoder": [detector.tokenizer, detector.encoder],
        "proposals and density": [detector.proposal_head, *([budget] if isinstance(budget, nn.Module) else [])],
    }
    parameters = sum(p.numel() for module in parts.get(name, [detector.decoder]) for p in module.parameters())
    return {
        "part": name,
        "wall, ms": 1e3 * cost.wall,
        "CPU seconds": cost.cpu,
        "GFLOP": count_flops(detector, run) / 1e9,
        "parameters, M": parameters / 1e6,
    }


def count_flops(detector: nn.Module, run: Callable[[], object]) -> int:
    """Floating-point operations of matrix products, convolutions, attention, and deformable attention."""
    sampled = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal sampled
        assert isinstance(module, MSDeformAttn)
        samples = module.num_levels * module.num_points * output.numel()  # per head one, D/M channels wide
        sampled += 8 * samples  # four corners, multiplied and added

    hooks = [m.register_forward_hook(add) for m in detector.modules() if isinstance(m, MSDeformAttn)]
    with FlopCounterMode(display=False) as counter:
        run()
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops() + sampled
