"""Memory allocation of CPU tensors: huge pages, and returning freed memory to the system."""

import ctypes
import os
import sys

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
LARGE = 2 * 2**20
KEPT = 64 * 2**20
"""Bytes of freed small tensors that the process keeps"""


def tune_allocation() -> None:
    """Use huge pages for large CPU tensors. Call it before torch allocates; it has an effect on Linux only.

    Pages of 2 MiB: with pages of 4 KiB, page faults take a quarter of the CPU time of a full-size detector. A value set
    in the environment has priority. glibc then returns freed large tensors to the system at once, instead of keeping
    them in a fragmented heap; it keeps small ones, which the next step reuses.

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, KEPT)
