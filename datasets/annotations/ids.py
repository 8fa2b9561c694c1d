"""The ids of annotations, which play no part here but break other tools: counted, and refused where two share one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from datasets.annotations.values import describe
from datasets.findings import Findings

RENUMBER_HINT = "or set data.on_bad_annotation: skip to count them anew in memory"


class AnnotationIds:
    """Collects them block by block, with what the entries lack."""

    def __init__(self) -> None:
        self._ids = bytearray()
        self._lacking: Counter[str] = Counter()

    def add(self, entries: list[Any]) -> None:
        objects = entries if set(map(type, entries)) == {dict} else [e if isinstance(e, dict) else {} for e in entries]
        ids: list[Any] = [entry.get("id") for entry in objects]
        self._lacking["area"] += [entry.get("area") for entry in objects].count(None)
        self._lacking["iscrowd"] += ["iscrowd" in entry for entry in objects].count(False)
        if set(map(type, ids)) != {int} or not -(2**62) < min(ids) <= max(ids) < 2**63:
            ids = self._numbered(ids)
        self._ids += np.array(ids, dtype=np.int64).tobytes()

    def _numbered(self, ids: list[Any]) -> list[int]:
        """An id that is no integer of 63 bits gets one of its own, far below all others."""
        spare = -(2**63) + len(self._ids) // 8
        usable = [type(value) is int and -(2**62) < value < 2**63 for value in ids]
        self._lacking["id"] += usable.count(False)
        return [value if good else spare + i for i, (value, good) in enumerate(zip(ids, usable, strict=True))]

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
        if (np.diff(ids) > 0).all():
            return
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
