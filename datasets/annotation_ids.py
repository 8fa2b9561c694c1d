"""The ids of annotations, which play no part here but break other tools: counted, and refused where two share one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotation_columns import describe
from datasets.findings import Findings

RENUMBER_HINT = "or set data.on_bad_annotation: skip to count them anew in memory"


class AnnotationIds:
    """Collects them block by block, with what the entries lack."""

    def __init__(self) -> None:
        self._ids = bytearray()
        self._lacking: Counter[str] = Counter()

    def add(self, entries: list[Any]) -> None:
        objects = [entry if isinstance(entry, dict) else {} for entry in entries]
        ids = [entry.get("id") for entry in objects]
        self._lacking["area"] += sum(entry.get("area") is None for entry in objects)
        self._lacking["iscrowd"] += sum("iscrowd" not in entry for entry in objects)
        start = len(self._ids) // 8
        # An id that is no integer gets one of its own, far below all others.
        alone = range(-(2**63) + start, -(2**63) + start + len(ids))
        own = [
            value if type(value) is int and -(2**62) < value < 2**63 else spare
            for value, spare in zip(ids, alone, strict=True)
        ]
        self._lacking["id"] += sum(value <= -(2**62) for value in own)
        self._ids += np.array(own, dtype=np.int64).tobytes()

    def report(self, path: Path, findings: Findings, *, renumber: bool) -> None:
        """renumber   ids that occur twice are mended in memory instead of refused"""
        ids = np.frombuffer(self._ids, dtype=np.int64)
        for key, what in (("id", "numbered"), ("area", "width times height"), ("iscrowd", "0")):
            if self._lacking[key]:
                message = f"{path}: {self._lacking[key]} annotations without {key}: {what}"
                findings.add("fixed", f"no_{key}", message, count=self._lacking[key])
        if zeros := int((ids == 0).sum()):
            message = f"{path}: annotation id 0, which pycocotools takes for no match: counted from 1 in memory"
            findings.add("fixed", "id_zero", message, count=zeros)
        order = np.argsort(ids, kind="stable")
        again = order[1:][ids[order[1:]] == ids[order[:-1]]]
        if renumber and len(again):
            message = f"{path}: {len(again)} annotations have the id of another one: counted from 1 in memory"
            findings.add("fixed", "repeated_id", message, count=len(again))
            return
        first = dict(zip(ids[order[::-1]].tolist(), order[::-1].tolist(), strict=True)) if len(again) else {}
        for number in np.sort(again).tolist():
            value = int(ids[number])
            message = (
                f"{path}: {describe('annotations', number, {'id': value})}: is also the id of "
                f"annotations[{first[value]}]; number them anew (other tools lose objects)"
            )
            findings.add(
                "error", "repeated_id", message, hint="or set data.on_bad_annotation: skip to number them here"
            )
