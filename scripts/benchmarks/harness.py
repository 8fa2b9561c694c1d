"""Timing, peak memory and tables, the same for every benchmark."""

import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from ops.report import describe_backend

Cell = str | int | float | None


@dataclass
class Table:
    """Measured rows under named columns; a column's name holds its unit."""

    title: str
    rows: list[dict[str, Cell]] = field(default_factory=list)

    def markdown(self) -> str:
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = [f"### {self.title}", "", _line(columns), _line(["---"] * len(columns))]
        return "\n".join([*lines, *(_line([_show(row.get(name)) for name in columns]) for row in self.rows)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _show(value: Cell) -> str:
    """Three digits, as many as a repeated run confirms."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"
    return f"{value:,}" if isinstance(value, int) else value


def seconds_alternately(work: Mapping[str, Callable[[], object]], *, repeats: int) -> dict[str, list[float]]:
    """Wall seconds of each piece of work, in alternation, `repeats` times after an uncounted first turn.

    What slows the machine down then slows all of them down: their ratios stay.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    gc.collect()
    for turn in range(repeats + 1):
        for name, run in work.items():
            start = time.perf_counter()
            result = run()
            synchronise()
            elapsed = time.perf_counter() - start
            del result
            if turn:
                seconds[name].append(elapsed)
    return seconds


@dataclass(frozen=True)
class Cost:
    """Time of one piece of work; `cpu` is the sum over its threads, without time spent waiting."""

    wall: float
    """Seconds"""
    cpu: float
    """Seconds of this process"""


def costs_alternately(work: Mapping[str, Callable[[], object]], *, repeats: int, warm: bool = True) -> dict[str, Cost]:
    """Medians of each piece of work, in alternation, `repeats` times; with `warm` after an uncounted first turn."""
    found: dict[str, list[Cost]] = {name: [] for name in work}
    for turn in range(repeats + warm):
        for name, run in work.items():
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            result = run()
            synchronise()
            cost = Cost(time.perf_counter() - wall, time.process_time() - cpu)
            del result
            if turn >= warm:
                found[name].append(cost)
    return {
        name: Cost(median([cost.wall for cost in costs]), median([cost.cpu for cost in costs]))
        for name, costs in found.items()
    }


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def synchronise() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mebibytes(work: Callable[[], object]) -> float:
    """Peak memory of the work on top of the memory before it: of the GPU if there is one, otherwise resident."""
    if not torch.cuda.is_available():
        return peak_resident_mebibytes(work)
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def peak_resident_mebibytes(work: Callable[[], object]) -> float:
    """Peak main memory of the work on top of the memory before it.

    Source: proc(5): writing 5 to clear_refs resets VmHWM. Linux only; raises OSError elsewhere.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before_kib = _status("VmRSS")
    work()
    return (_status("VmHWM") - before_kib) / 1024


def process_mebibytes() -> float:
    """Peak resident memory of this process since the last `peak_mebibytes` began. Linux only."""
    return _status("VmHWM") / 1024


def resident_mebibytes() -> float:
    """Resident memory of this process now. Linux only."""
    return _status("VmRSS") / 1024


def _status(key: str) -> int:
    """KiB from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def held_mebibytes(device: torch.device) -> float:
    """Memory held now: by tensors on the GPU, or by this process."""
    return torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else resident_mebibytes()


def peak_held_mebibytes(device: torch.device) -> float:
    """Peak memory since the last `peak_mebibytes` began: of tensors on the GPU, or of this process."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else process_mebibytes()


def machine() -> dict[str, Any]:
    """Versions and hardware that the figures depend on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "deformable attention": describe_backend(torch.device("cuda" if torch.cuda.is_available() else "cpu")).backend,
        "yardstick_milliseconds": round(yardstick_milliseconds(), 2),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def yardstick_milliseconds(repeats: int = 20) -> float:
    """Time of a 256x2,048 linear layer on 1,024 rows, float32: to compare figures of different machines and times."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows, weight = torch.randn(1024, 256, device=device), torch.randn(2048, 256, device=device)
    with torch.inference_mode():
        found = seconds_alternately({"linear": lambda: F.linear(rows, weight)}, repeats=repeats)
    return 1e3 * median(found["linear"])


def report(name: str, tables: Sequence[Table], *, json_file: Path | None) -> None:
    """Print the tables and the machine, and write both as JSON."""
    facts = machine()
    stated = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in facts.items())
    print(*(table.markdown() + "\n" for table in tables), stated, sep="\n")
    write(name, tables, facts, json_file=json_file)


def write(name: str, tables: Sequence[Table], facts: Mapping[str, Any], *, json_file: Path | None) -> None:
    """Write the tables and the machine as JSON, if a file is given."""
    if json_file is not None:
        content = {"benchmark": name, "machine": facts, "tables": {table.title: table.rows for table in tables}}
        json_file.write_text(json.dumps(content, indent=2) + "\n")
