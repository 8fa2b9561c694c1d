"""In processes of their own, as what an allocator does is not undone: after all that main.py imports, or ops alone."""

import json
import subprocess
import sys

import pytest

PROGRAM = """
import json, resource, sys
from pathlib import Path
if sys.argv[1] == "main":
    import main
import ops
if sys.argv[2] == "tuned":
    ops.tune_allocation()
import torch
assert ("engine" in sys.modules) == (sys.argv[1] == "main")

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident_mebibytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

def tensor(mebibytes):
    return torch.empty(mebibytes * 2**20, dtype=torch.uint8).fill_(1)

before = faults()
large = tensor(32)
found = {"faults": faults() - before}
del large
tensor(30)
before = resident_mebibytes()
many = [tensor(8) for _ in range(20)]
last = many.pop()
del many
print(json.dumps(found | {"kept": resident_mebibytes() - before}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's pages and glibc's allocator")
@pytest.mark.parametrize("program", ["main", "ops"])
def test_large_tensors_take_few_pages_and_are_given_back(program: str) -> None:
    """32 MiB are 8,192 pages of 4 KiB or 16 of 2 MiB; 152 of 160 MiB are freed."""
    found = {}
    for kind in ("tuned", "plain"):
        run = subprocess.run([sys.executable, "-c", PROGRAM, program, kind], capture_output=True, text=True, check=True)
        found[kind] = json.loads(run.stdout.splitlines()[-1])
    if found["plain"]["faults"] >= 4000:  # otherwise the machine takes large pages by itself
        assert found["tuned"]["faults"] < found["plain"]["faults"] / 4
    assert found["tuned"]["kept"] < 40
