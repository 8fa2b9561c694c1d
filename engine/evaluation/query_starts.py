"""Where the queries of an image started, recorded for the analysis of its misses."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from engine.analysis.causes import QueryStarts
from engine.distributed.processes import Processes, gather_rows
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


def gather_starts(starts: Mapping[int, QueryStarts], processes: Processes) -> Mapping[int, QueryStarts]:
    """The query starts of all processes, by image id."""
    if processes.world_size == 1:
        return starts
    sizes = [[key, each.num_queries, len(each.centres), len(each.of_detection)] for key, each in starts.items()]
    table = gather_rows(torch.tensor(sizes, dtype=torch.int64).view(-1, 4), processes).numpy()
    centres = _gathered([np.zeros((0, 2), np.float32), *(each.centres for each in starts.values())], processes)
    queries = _gathered([np.zeros(0, np.int64), *(each.of_detection for each in starts.values())], processes)
    per_image = zip(
        table[:, :2].tolist(),
        np.split(centres, table[:, 2].cumsum())[:-1],
        np.split(queries, table[:, 3].cumsum())[:-1],
        strict=True,
    )
    return {image_id: QueryStarts(own, count, of_detection) for (image_id, count), own, of_detection in per_image}


def _gathered(rows: Sequence[np.ndarray], processes: Processes) -> np.ndarray:
    return gather_rows(torch.from_numpy(np.concatenate(rows)), processes).numpy()
