"""Evaluation protocols: which sizes, limits and thresholds, and which numbers are reported.

Sources: Wang et al., Tiny Object Detection in Aerial Images, ICPR 2020 (AI-TOD); pycocotools.cocoeval (COCO);
VisDrone2018-DET-toolkit, calcAccuracy and dropObjectsInIgr; Xia et al., DOTA, CVPR 2018.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class EvaluationProtocol:
    """What is counted and what is reported. Raises ValueError for lists that are empty or do not ascend."""

    name: str
    areas: Mapping[str, tuple[float, float]]
    """Size ranges in px^2, both bounds inclusive, the one with every object first."""
    max_detections: tuple[int, ...]
    """Best detections kept per image AND class, see limits_all_classes. AP uses the last."""
    reported_ious: tuple[float, ...]
    """Single IoU thresholds that the summary lists; -1 where one is not among iou_thresholds."""
    reports_lrp: bool
    """Whether the summary lists LRP."""
    iou_thresholds: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
    """LRP is taken at the first."""
    recall_thresholds: tuple[float, ...] = tuple(np.linspace(0.0, 1.0, 101).tolist())
    """Where precision is sampled."""
    limits_all_classes: bool = False
    """Whether the limits are of an image's detections of all classes together."""
    ignored_share: float | None = None
    """Objects and detections with at least this share inside ignored regions (crowds of every class) are dropped; None:
    such regions are crowds like others."""

    def __post_init__(self) -> None:
        for field in ("max_detections", "iou_thresholds", "recall_thresholds"):
            values = getattr(self, field)
            if not values or list(values) != sorted(set(values)):
                raise ValueError(f"{field} {values} must ascend and not be empty")
        if self.max_detections[0] < 1:
            raise ValueError(f"max_detections {self.max_detections} must be at least 1")
        if not 0 < self.iou_thresholds[0] <= self.iou_thresholds[-1] < 1:
            raise ValueError(f"iou_thresholds {self.iou_thresholds} must lie between 0 and 1, both excluded")
        if not self.areas:
            raise ValueError("areas is empty; name at least one range, such as {'all': (0, 1e10)}")


AITOD = EvaluationProtocol(
    name="aitod",
    areas={
        "all": (0, 1e10),
        "verytiny": (0, 64),
        "tiny": (64, 256),
        "small": (256, 1024),
        "medium": (1024, 1e10),
    },
    max_detections=(100, 300, 1500),
    reported_ious=(0.25, 0.5, 0.75),
    reports_lrp=True,
)

COCO = EvaluationProtocol(
    name="coco",
    areas={"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)},
    max_detections=(1, 10, 100),
    reported_ious=(0.5, 0.75),
    reports_lrp=False,
)

VISDRONE = EvaluationProtocol(
    name="visdrone",
    areas={"all": (0, 1e10)},
    max_detections=(1, 10, 100, 500),
    reported_ious=(0.5, 0.75),
    reports_lrp=False,
    limits_all_classes=True,
    ignored_share=0.5,
)
"""The toolkit integrates precision over recall, where it is sampled at 101 places here, and counts ignored objects in
the recall's denominator, which no one here does."""

DOTA = EvaluationProtocol(
    name="dota",
    areas={"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)},
    max_detections=(100, 500, 2000),
    reported_ious=(0.5, 0.75),
    reports_lrp=False,
)
"""Horizontal boxes on tiles. DOTA's server has no limit and reports AP50; 2,000 of a class are more than a tile of
1,024 px holds in practice."""


def get_protocol(name: str, max_detections: int | None = None) -> EvaluationProtocol:
    """The protocol of that name; max_detections replaces its last limit and drops those at or above it.

    COCO with 500 is what many papers report on VisDrone. Raises ValueError for an unknown name.
    """
    protocols = {protocol.name: protocol for protocol in (AITOD, COCO, VISDRONE, DOTA)}
    if name not in protocols:
        raise ValueError(f"unknown evaluation protocol {name!r}; choose one of {', '.join(sorted(protocols))}")
    protocol = protocols[name]
    if max_detections is None:
        return protocol
    lower = tuple(limit for limit in protocol.max_detections[:-1] if limit < max_detections)
    return replace(protocol, max_detections=(*lower, max_detections))
