import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import main
from engine.memory import allocate_in_huge_pages
if sys.argv[1] == "huge":
    allocate_in_huge_pages()
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.empty(32 * 2**20, dtype=torch.uint8).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="transparent huge pages are Linux's")
def test_huge_pages_save_page_faults() -> None:
    """After everything that main.py imports: 32 MiB are 8,192 pages of 4 KiB, or 16 of 2 MiB."""
    faults = {}
    for kind in ("huge", "plain"):
        run = subprocess.run([sys.executable, "-c", PROGRAM, kind], capture_output=True, text=True, check=True)
        faults[kind] = int(run.stdout)
    if faults["plain"] < 4000:
        pytest.skip("this machine uses huge pages, or larger ones, by itself")
    assert faults["huge"] < faults["plain"] / 4
