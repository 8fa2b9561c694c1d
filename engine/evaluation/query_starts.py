"""Where the queries of an image started, recorded for the analysis of its misses."""

from collections.abc import Callable

import torch

from engine.analysis.causes import QueryStarts
from models.structures import Detections, DetectorOutput


def query_recorder(
    *, class_agnostic: bool
) -> Callable[[DetectorOutput, int, tuple[int, int], Detections], QueryStarts]:
    """A recorder for `predict_batches`; class_agnostic as in `models.proposals.select_queries`, which it repeats for
    twice the budget."""

    def record(output: DetectorOutput, image: int, size: tuple[int, int], found: Detections) -> QueryStarts:
        queries = output.queries.counts[image]
        logits = output.proposals.logits[0, image]
        scores = logits[:, 0] if class_agnostic else logits.max(-1).values
        ranked = scores.topk(min(2 * queries, len(scores))).indices[queries:]
        beyond = output.proposals.boxes_unact[0, image, ranked, :2].float().sigmoid()
        started = output.initial_boxes[image, :queries, :2].float()
        height, width = size
        centres = torch.cat([started, beyond]) * started.new_tensor([width, height])
        assert found.queries is not None  # of one image, nothing merged
        return QueryStarts(centres.cpu().numpy(), queries, found.queries.cpu().numpy())

    return record
