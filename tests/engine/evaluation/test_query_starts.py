"""Where queries started: the selected proposals and those after them, in pixels of the file; detections know theirs."""

import pytest
import torch

from engine.evaluation.query_starts import query_recorder
from models.build import build_postprocess
from tests.support.shrunken import SIDE, SYSTEMS, random_images, small_config, small_detector


@pytest.mark.parametrize("name", SYSTEMS)
def test_starts_and_the_query_of_each_detection(name: str) -> None:
    config = small_config(name)
    detector = small_detector(config).eval()
    images, mask = random_images([(SIDE, SIDE), (SIDE // 2, SIDE)])
    with torch.no_grad():
        output = detector(images, mask)
    sizes, files = [(SIDE, SIDE), (SIDE // 2, SIDE)], [(2 * SIDE, 3 * SIDE), (SIDE, 2 * SIDE)]
    found = build_postprocess(config)(output, sizes, files)
    record = query_recorder(class_agnostic=config.model.class_agnostic_proposals)
    for i, (height, width) in enumerate(files):
        starts, count = record(output, i, files[i], found[i]), int(output.num_queries[i])
        tokens = output.proposals.logits.shape[2]
        assert starts.num_queries == count
        assert len(starts.centres) == min(2 * count, tokens)
        started = output.initial_boxes[i, :count, :2] * torch.tensor([width, height])
        torch.testing.assert_close(torch.from_numpy(starts.centres[:count]), started)

        logits = output.proposals.logits[0, i]
        scores = logits[:, 0] if config.model.class_agnostic_proposals else logits.max(-1).values
        boxes = output.proposals.boxes_unact[0, i].sigmoid()
        expected = boxes[scores.argsort(descending=True), :2] * torch.tensor([width, height])
        torch.testing.assert_close(torch.from_numpy(starts.centres[count:]), expected[count : 2 * count])

        own = torch.from_numpy(starts.of_detection)
        ends = output.queries.boxes[-1, i, own, :2] * torch.tensor([width, height])
        inside = ((found[i].boxes[:, :2] > 0) & (found[i].boxes[:, 2:] < torch.tensor([width, height]))).all(-1)
        centres = (found[i].boxes[:, :2] + found[i].boxes[:, 2:]) / 2
        torch.testing.assert_close(centres[inside], ends[inside], atol=1e-3, rtol=1e-4)
