"""How large tensors on CPUs take memory and give it back."""

import ctypes
import os
import sys

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD = -3, -1
LARGE = 2 * 2**20
KEPT = 64 * 2**20
"""Bytes of small tensors that may stay in the process once they are freed"""


def tune_allocation() -> None:
    """Call before torch allocates; for large tensors on CPUs under Linux, elsewhere without effect.

    Pages of 2 MiB: on pages of 4 KiB, a quarter of the CPU time of a full-size detector goes into page faults. A
    value set in the environment stays. And glibc returns a freed large tensor to the system at once, instead of keeping
    it in a heap with holes, but not the small ones, which the next step takes again.

    Source: mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, KEPT)
