"""The COCO results format, written image by image: absolute xywh in px, never rounded, categories by their id."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np

from engine.evaluation.evaluate import SCORE, GatheredPredictions


class CocoResults:
    """Context in which results are written to a file, `[{"image_id", "category_id", "bbox", "score"}, ...]`.

    category_ids   of each label
    """

    def __init__(self, path: Path, category_ids: Sequence[int]) -> None:
        self.path = path
        self.category_ids = list(category_ids)
        self._file: TextIO | None = None
        self._written = 0

    def __enter__(self) -> "CocoResults":
        self._file = self.path.open("w", encoding="utf-8")
        self._file.write("[")
        return self

    def __exit__(self, *_: object) -> None:
        assert self._file is not None
        self._file.write("\n]\n")
        self._file.close()

    def add(self, image_id: int, boxes: np.ndarray, scores: Iterable[float], labels: Iterable[int]) -> None:
        """The detections of one image; boxes (N, 4) float64 xyxy px."""
        assert self._file is not None
        sizes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        for box, score, label in zip(sizes.tolist(), scores, labels, strict=True):
            entry = {"image_id": image_id, "category_id": self.category_ids[label], "bbox": box, "score": score}
            self._file.write(("," if self._written else "") + "\n" + json.dumps(entry))
            self._written += 1


def dump_results(path: Path, found: GatheredPredictions, category_ids: Sequence[int], *, limit: int) -> None:
    """Write the detections of all images, by ascending image id, each image's best first.

    limit   most of an image; the protocol takes no more of a class
    """
    with CocoResults(path, category_ids) as file:
        columns = found.image_ids.tolist(), found.first_detection.tolist(), found.num_detections.tolist()
        for image_id, first, number in zip(*columns, strict=True):
            rows = found.detections[first : first + min(number, limit)].astype(np.float64)
            file.add(image_id, rows[:, :4], rows[:, SCORE].tolist(), rows[:, 5].astype(np.int64).tolist())
