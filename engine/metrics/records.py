"""Input of the metrics: the ground truth and the detections of one image, as arrays."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """Ground truth and detections of one image; G objects, D detections, both in file order.

    Array-likes of other dtypes are converted. The order matters where scores or IoUs tie.

    Raises ValueError, naming the image and the field, for wrong shapes, unequal lengths, non-finite numbers and
    labels that are not integers.
    """

    image_id: int
    gt_boxes: FloatArray
    """(G, 4) xywh, px."""
    gt_labels: IntArray
    """(G,) contiguous class indices 0..K-1, not category ids."""
    gt_areas: FloatArray
    """(G,) px^2, as annotated: need not be w*h."""
    gt_crowd: BoolArray
    """(G,) regions that neither count as objects nor make detections in them false."""
    boxes: FloatArray
    """(D, 4) xywh, px."""
    scores: FloatArray
    """(D,)"""
    labels: IntArray
    """(D,) contiguous class indices 0..K-1."""

    def __post_init__(self) -> None:
        for field in ("gt_boxes", "gt_areas", "boxes", "scores"):
            self._convert(field, np.float64)
        for field in ("gt_labels", "labels"):
            self._convert(field, np.int64)
        self._convert("gt_crowd", np.bool_)
        for boxes, others in (
            ("gt_boxes", ("gt_labels", "gt_areas", "gt_crowd")),
            ("boxes", ("scores", "labels")),
        ):
            shape = getattr(self, boxes).shape
            if len(shape) != 2 or shape[1] != 4:
                raise self._error(boxes, f"has shape {shape}; expected (N, 4), for no boxes (0, 4)")
            for field in others:
                if getattr(self, field).shape != shape[:1]:
                    found = getattr(self, field).shape
                    raise self._error(field, f"has shape {found}; expected {shape[:1]}, one for each of {boxes}")
        for field in ("gt_boxes", "gt_areas", "boxes", "scores"):
            values = getattr(self, field)
            if not np.isfinite(values).all():
                first = int(np.argwhere(~np.isfinite(values))[0, 0])
                raise self._error(field, f"row {first} is {values[first]}; every value must be finite")

    def _convert(self, field: str, dtype: type[np.generic]) -> None:
        values = np.asarray(getattr(self, field))
        if dtype is np.int64 and values.size and not np.issubdtype(values.dtype, np.integer):
            raise self._error(field, f"has dtype {values.dtype}; expected integer class indices")
        object.__setattr__(self, field, values.astype(dtype, copy=False))

    def _error(self, field: str, problem: str) -> ValueError:
        return ValueError(f"image {self.image_id}: {field} {problem}")


def records_from_coco(
    gt: dict[str, Any], detections: Sequence[dict[str, Any]], image_ids: Collection[int] | None = None
) -> tuple[list[ImageRecord], list[int]]:
    """COCO structures -> (records by ascending image id, category ids by ascending id: index = label).

    gt           the loaded annotation file: images, annotations, categories
    detections   the loaded result list: image_id, category_id, bbox [x, y, w, h] in px, score
    image_ids    evaluate these images only; None: all

    A missing `iscrowd` is 0, a missing `area` is w*h. As in COCOeval, `ignore` is not read and annotations of
    images or categories that the file does not list are skipped. Unlike there, an annotation whose id is 0 counts
    like any other (COCOeval takes its matches for misses).

    Raises ValueError for a detection, or an entry of image_ids, that the annotation file does not list.
    """
    category_ids = sorted({category["id"] for category in gt["categories"]})
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    known_images = {image["id"] for image in gt["images"]}
    chosen = known_images if image_ids is None else set(image_ids)
    if unknown := sorted(chosen - known_images):
        raise ValueError(f"image id {unknown[0]} is not among the {len(known_images)} images of the annotation file")

    objects_of: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in gt["annotations"]:
        if annotation["image_id"] in chosen and annotation["category_id"] in label_of:
            objects_of[annotation["image_id"]].append(annotation)
    detections_of: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for index, detection in enumerate(detections):
        if detection["image_id"] not in known_images:
            raise ValueError(
                f"detection {index} has image_id {detection['image_id']}, which the annotation file does not "
                "list; evaluate against the file that the detections were made for"
            )
        if detection["category_id"] not in label_of:
            raise ValueError(
                f"detection {index} has category_id {detection['category_id']}; the annotation file lists "
                f"{category_ids}. Map class indices back to category ids"
            )
        if detection["image_id"] in chosen:
            detections_of[detection["image_id"]].append(detection)
    records = [_record(i, objects_of.get(i, []), detections_of.get(i, []), label_of) for i in sorted(chosen)]
    return records, category_ids


def _record(
    image_id: int, objects: list[dict[str, Any]], detections: list[dict[str, Any]], label_of: dict[int, int]
) -> ImageRecord:
    def boxes(entries: list[dict[str, Any]]) -> FloatArray:
        return np.array([e["bbox"] for e in entries], np.float64) if entries else np.zeros((0, 4))

    def labels(entries: list[dict[str, Any]]) -> IntArray:
        return np.array([label_of[e["category_id"]] for e in entries], np.int64)

    return ImageRecord(
        image_id=image_id,
        gt_boxes=boxes(objects),
        gt_labels=labels(objects),
        gt_areas=np.array([o.get("area", o["bbox"][2] * o["bbox"][3]) for o in objects], np.float64),
        gt_crowd=np.array([bool(o.get("iscrowd", 0)) for o in objects], np.bool_),
        boxes=boxes(detections),
        scores=np.array([d["score"] for d in detections], np.float64),
        labels=labels(detections),
    )
