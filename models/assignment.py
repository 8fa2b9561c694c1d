"""Exact one-to-one assignment of least total cost, on the host: of a whole cost matrix, or of its cheapest entries."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows and columns of the matched entries, rows ascending"""


def assign(cost: NDArray[np.float32]) -> Pairs:
    """(N, Q) finite costs -> min(N, Q) pairs."""
    rows, columns = linear_sum_assignment(cost)
    return rows.astype(np.int64), columns.astype(np.int64)


class ShortLists:
    """The cheapest entries of each row of an (N, Q) cost matrix, N <= Q: they hold the optimum, or are too few.

    An entry that is not listed costs at least as much as the last one that is. Every row may therefore, instead of a
    listed column, take a column of its own at that price: this relaxed problem is never dearer than the whole one, so
    where its optimum uses no such column it is the optimum of the whole problem. Rows that do use one need longer
    lists. A list of N columns is always long enough.
    """

    def __init__(self, costs: NDArray[np.float32], columns: NDArray[np.int32]) -> None:
        """(N, K+1), (N, K+1): the K+1 cheapest entries of every row, ascending."""
        self.blocks = [(np.arange(len(costs)), costs, columns)]

    def lengthen(self, rows: NDArray[np.int64], costs: NDArray[np.float32], columns: NDArray[np.int32]) -> None:
        """Replace the lists of some rows: (n,), (n, K+1), (n, K+1)."""
        blocks = []
        for old_rows, old_costs, old_columns in self.blocks:
            kept = ~np.isin(old_rows, rows)
            blocks.append((old_rows[kept], old_costs[kept], old_columns[kept]))
        self.blocks = [*blocks, (rows, costs, columns)]

    def assign(self) -> tuple[Pairs, NDArray[np.int64]]:
        """The pairs of all rows, and no row; or pairs of no meaning, and the rows whose lists are too short."""
        rows, own, costs, columns = [], [], [], []
        count = sum(len(block[0]) for block in self.blocks)
        for block_rows, block_costs, block_columns in self.blocks:
            # Costs above the row's least, in float64, plus one: a stored zero would be no entry.
            weight = block_costs.astype(np.float64) - block_costs[:, :1] + 1
            complete = block_costs.shape[1] >= count
            is_own = np.zeros(block_costs.shape, dtype=bool)
            is_own[:, -1] = not complete
            rows.append(np.repeat(block_rows, block_costs.shape[1]))
            own.append(is_own.ravel())
            costs.append(weight.ravel())
            columns.append(block_columns.ravel())
        row, is_own_column, column = np.concatenate(rows), np.concatenate(own), np.concatenate(columns).astype(np.int64)
        used, compact = np.unique(column, return_inverse=True)
        compact = np.where(is_own_column, len(used) + row, compact)
        graph = csr_matrix((np.concatenate(costs), (row, compact)), shape=(count, len(used) + count))
        matched_rows, matched = min_weight_full_bipartite_matching(graph)
        too_short = matched >= len(used)
        pairs = matched_rows.astype(np.int64), used[np.where(too_short, 0, matched)]
        return pairs, matched_rows[too_short].astype(np.int64)
