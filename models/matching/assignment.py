"""Exact one-to-one assignment of least total cost, on the host: of a whole cost matrix, or of its cheapest entries."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

OWN = -1
"""Marks the private column that each row of the relaxed problem has"""
Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]
"""Rows and columns of the matched entries, rows ascending"""


def assign(cost: NDArray[np.float32]) -> Pairs:
    """(N, Q) finite costs -> min(N, Q) pairs."""
    rows, columns = linear_sum_assignment(cost)
    return rows.astype(np.int64), columns.astype(np.int64)


class ShortLists:
    """Cheap entries of each row of an (N, Q) cost matrix, N <= Q: they hold the optimum, or are too few.

    In the relaxed problem, a row may also take a private column, at a lower bound of its unlisted costs. Its optimum
    never costs more than that of the whole problem; without private columns it is the optimum of the whole problem.
    Rows that use their private column need longer lists. The N cheapest entries of each row always suffice.
    """

    def __init__(self, costs: NDArray[np.float32], columns: NDArray[np.int32], rest: NDArray[np.float32]) -> None:
        """The lists of all rows, as for `lengthen`."""
        self.lists: list[tuple[NDArray[Any], ...]] = [(np.arange(len(costs)), costs, columns, rest)]

    def lengthen(
        self, rows: NDArray[np.int64], costs: NDArray[np.float32], columns: NDArray[np.int32], rest: NDArray[np.float32]
    ) -> None:
        """Replace the lists of some rows.

        rows             (n,)
        costs, columns   (n, K)  listed entries
        rest             (n,)    at most the cost of any other entry; infinite where none can be needed
        """
        shortened = []
        for old in self.lists:
            kept = ~np.isin(old[0], rows)
            shortened.append(tuple(array[kept] for array in old))
        self.lists = [*shortened, (rows, costs, columns, rest)]

    def assign(self) -> tuple[Pairs, NDArray[np.int64]]:
        """(pairs, []) if the short lists prove optimality, else (undefined, rows whose lists must be extended)."""
        rows, costs, columns = [], [], []
        count = sum(len(part[0]) for part in self.lists)
        for list_rows, list_costs, list_columns, rest in self.lists:
            # Relative to the row's least cost, in float64, plus one: the sparse solver drops stored zeros.
            weight = np.column_stack([list_costs, rest]).astype(np.float64)  # (n, K+1)
            weight -= weight.min(1, keepdims=True) - 1
            rows.append(np.repeat(list_rows, weight.shape[1]))
            costs.append(weight.ravel())
            columns.append(np.column_stack([list_columns, np.full(len(rest), OWN)]).ravel())
        row, cost, column = np.concatenate(rows), np.concatenate(costs), np.concatenate(columns)
        used, compact = np.unique(column, return_inverse=True)
        compact = np.where(column == OWN, len(used) + row, compact)
        entry = np.isfinite(cost)
        graph = csr_matrix((cost[entry], (row[entry], compact[entry])), shape=(count, len(used) + count))
        matched_rows, matched = min_weight_full_bipartite_matching(graph)
        too_short = matched >= len(used)  # (N,) takes its private column
        pairs = matched_rows.astype(np.int64), used[np.where(too_short, 0, matched)].astype(np.int64)
        return pairs, matched_rows[too_short].astype(np.int64)
