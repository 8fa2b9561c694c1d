"""Facts about the machine from torch and the driver: python -m scripts.gpu_steps.facts FILE.json"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from engine.console import guard_console
from ops.cuda_build import NoCudaError, find_nvcc


def facts() -> dict[str, Any]:
    """Name, capability and memory of each GPU, in torch's order."""
    gpus = []
    for i in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(i)
        gpus.append(f"{found.name}, sm_{found.major}{found.minor}, {found.total_memory / 2**30:.0f} GiB")
    return {
        "gpus": gpus,
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0],
        "torch": torch.__version__,
        "torch's CUDA": torch.version.cuda,
        "nvcc": _nvcc(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "commit": _output("git", "describe", "--always", "--dirty"),
    }


def _nvcc() -> str:
    try:
        return _output(find_nvcc(), "--version").rpartition("\n")[2]
    except NoCudaError as reason:
        return str(reason)


def _output(*command: str) -> str:
    """Output of a command; empty if it cannot run."""
    try:
        found = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""


if __name__ == "__main__":
    guard_console()
    stated = facts()
    Path(sys.argv[1]).write_text(json.dumps(stated, indent=2) + "\n")
    print(*(f"{name}: {value}" for name, value in stated.items()), sep="\n")
