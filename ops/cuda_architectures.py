"""The GPU architectures that the CUDA kernels are compiled for, from TORCH_CUDA_ARCH_LIST."""

import os
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch

VARIABLE = "TORCH_CUDA_ARCH_LIST"
# Machine code runs on all devices of its major version that are not older; PTX of the newest serves those that are
# newer still, whose driver compiles it at the first call.
DEFAULT = ("7.5", "8.0", "9.0+PTX")
OLDEST = 75
# As torch.utils.cpp_extension and CMake understand them.
NAMED = {
    "kepler": ("3.5+PTX",),
    "kepler+tesla": ("3.7",),
    "maxwell": ("5.0", "5.2+PTX"),
    "maxwell+tegra": ("5.3",),
    "pascal": ("6.0", "6.1+PTX"),
    "volta": ("7.0+PTX",),
    "volta+tegra": ("7.2",),
    "turing": ("7.5+PTX",),
    "ampere": ("8.0", "8.6+PTX"),
    "ampere+tegra": ("8.7",),
    "ada": ("8.9+PTX",),
    "hopper": ("9.0+PTX",),
    "blackwell": ("10.0", "10.3", "12.0", "12.1+PTX"),
    "blackwell+tegra": ("11.0",),
    "common": DEFAULT,
    "all-major": ("7.5", "8.0", "9.0", "10.0", "11.0", "12.0+PTX"),
}
OF_THIS_MACHINE = ("native", "auto")
NOT_UNDERSTOOD = "no number like 8.0 or 9.0+PTX and no name like Ampere"


class NoArchitectureError(Exception):
    """None of the requested architectures has kernels."""


@dataclass(frozen=True)
class _Architecture:
    number: int  # 80 for compute capability 8.0
    variant: str = ""  # a: code for that very device; f: for its family
    ptx: bool = False

    def __str__(self) -> str:
        return f"{self.number}{self.variant}{'+PTX' if self.ptx else ''}"


def architectures(known: Set[int]) -> tuple[tuple[str, ...], list[str]]:
    """Architectures to compile for, sorted: ("80", "90+PTX"); and a remark with the reason for each dropped entry.

    known   numbers that the compiler supports, like 80; empty if unknown
    Raises NoArchitectureError if entries are understood and all are dropped.
    """
    wanted, remarks = _wanted(known)
    found, dropped = _sorted_out(wanted or DEFAULT, known)
    if wanted:
        remarks += [f"{VARIABLE}: {', '.join(entries)} dropped: {why}" for why, entries in dropped.items()]
    if not found and (not wanted or set(dropped) != {NOT_UNDERSTOOD}):
        raise NoArchitectureError("; ".join(remarks) or f"this nvcc knows none of {', '.join(DEFAULT)}")
    if not found:
        remarks.append(f"{VARIABLE}: nothing is left, {_instead()}")
        found, dropped = _sorted_out(DEFAULT, known)
    lost_ptx = any(entry.upper().endswith("+PTX") for entries in dropped.values() for entry in entries)
    return tuple(map(str, _each_once(found, ptx=lost_ptx))), remarks


def _wanted(known: Set[int]) -> tuple[list[str], list[str]]:
    """The requested entries, with names replaced by numbers; and remarks."""
    entries: list[str] = []
    remarks: list[str] = []
    for entry in re.split(r"[;,\s\"']+", os.environ.get(VARIABLE, "")):
        name = entry.lower()
        if name in OF_THIS_MACHINE:
            seen = _devices_seen()
            entries += seen or DEFAULT
            remarks += [] if seen else [f"{VARIABLE}: {entry}, and no GPU is visible: {_instead()}"]
        elif name == "all":
            every = [f"{number // 10}.{number % 10}" for number in sorted(known) if number >= OLDEST]
            entries += [*every[:-1], f"{every[-1]}+PTX"] if every else DEFAULT
        elif entry:
            entries += NAMED.get(name) or NAMED.get(name.removesuffix("+ptx")) or [entry]
    return entries, remarks


def _devices_seen() -> list[str]:
    capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return [f"{major}.{minor}" for major, minor in sorted(capabilities)]


def _instead() -> str:
    return f"built for {', '.join(DEFAULT)}"


def _sorted_out(entries: Sequence[str], known: Set[int]) -> tuple[list[_Architecture], dict[str, list[str]]]:
    """The architectures to build, and the dropped entries by reason."""
    found: list[_Architecture] = []
    dropped: dict[str, list[str]] = {}
    for entry in entries:
        architecture = _parsed(entry)
        if architecture is None:
            why = NOT_UNDERSTOOD
        elif architecture.number < OLDEST:
            why = f"there are no kernels for GPUs older than {OLDEST / 10}"
        elif known and architecture.number not in known:
            why = f"this nvcc compiles for {', '.join(f'{number / 10}' for number in sorted(known))} only"
        else:
            found.append(architecture)
            continue
        dropped.setdefault(why, []).append(entry)
    return found, dropped


def _parsed(entry: str) -> _Architecture | None:
    """Parse 8.0, 9.0a, 8.6+PTX, sm_80, 80 or 90-virtual; None if it is no architecture."""
    match = re.fullmatch(r"(?:(sm|compute)_?)?(\d+)(?:\.(\d))?([af]?)(\+ptx|-real|-virtual)?", entry.lower())
    if match is None:
        return None
    kind, major, minor, variant, suffix = match.groups(default="")
    number = int(major + minor)
    return _Architecture(number, variant, kind == "compute" or suffix in ("+ptx", "-virtual")) if number >= 10 else None


def _each_once(found: list[_Architecture], *, ptx: bool) -> list[_Architecture]:
    """Sort and merge duplicates, with PTX if any of them has it.

    ptx   give the newest PTX if none has it
    """
    with_ptx = {(each.number, each.variant) for each in found if each.ptx}
    every = sorted({(each.number, each.variant) for each in found})
    if ptx and not with_ptx:
        with_ptx = {every[-1]}
    return [_Architecture(*each, ptx=each in with_ptx) for each in every]
