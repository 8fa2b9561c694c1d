"""Memory of the machine: how it is taken."""

import os


def allocate_in_huge_pages() -> None:
    """Call before torch allocates; a value set in the environment stays.

    Linux then maps large tensors in pages of 2 MiB. On pages of 4 KiB, a quarter of the CPU time of a full-size
    detector goes into page faults.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
