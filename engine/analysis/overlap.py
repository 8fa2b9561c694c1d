"""Overlapping pairs of two sets of boxes, without the dense matrix of all pairs."""

from dataclasses import dataclass

import numpy as np

from engine.metrics.records import BoolArray, FloatArray, IntArray

_PAIRS_PER_BLOCK = 1 << 18  # keeps the dense test of a crowded image in the cache


@dataclass(frozen=True, eq=False)
class Pairs:
    """P pairs with common area: by row, then falling IoU, then falling column. All (P,)."""

    row: IntArray
    column: IntArray
    iou: FloatArray

    def where(self, chosen: BoolArray) -> "Pairs":
        """(P,) -> the chosen pairs."""
        return Pairs(self.row[chosen], self.column[chosen], self.iou[chosen])

    def best(self, rows: int) -> tuple[FloatArray, IntArray]:
        """Highest IoU of each row and its column, both (rows,); 0 and -1 without a pair."""
        iou, column = np.zeros(rows), np.full(rows, -1)
        row, first = np.unique(self.row, return_index=True)
        iou[row], column[row] = self.iou[first], self.column[first]
        return iou, column


def overlapping(boxes: FloatArray, others: FloatArray, *, of_first: bool = False) -> Pairs:
    """Pairs of (N, 4) and (M, 4) boxes, xywh px.

    of_first   the common area as a share of the first box instead of the union, as for crowd regions
    """
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    other_low, other_high = others[:, :2], others[:, :2] + others[:, 2:]
    rows, columns, common = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    step = max(1, _PAIRS_PER_BLOCK // max(1, len(others)))
    for begin in range(0, len(boxes) if len(others) else 0, step):
        block = slice(begin, begin + step)
        width = np.minimum(high[block, :1], other_high[:, 0]) - np.maximum(low[block, :1], other_low[:, 0])
        height = np.minimum(high[block, 1:], other_high[:, 1]) - np.maximum(low[block, 1:], other_low[:, 1])
        row, column = np.nonzero((width > 0) & (height > 0))
        rows.append(row + begin)
        columns.append(column)
        common.append(width[row, column] * height[row, column])
    row, column, area = np.concatenate(rows), np.concatenate(columns), np.concatenate(common)
    union = boxes[row, 2] * boxes[row, 3]
    if not of_first:
        union = union + others[column, 2] * others[column, 3] - area
    iou = area / union
    order = np.lexsort((-column, -iou, row))
    return Pairs(row[order], column[order], iou[order])
