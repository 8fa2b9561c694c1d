"""Whether the CUDA kernels run on a device: tested once per device, with a tiny call.

A library that exists may not run on a device: it was built for other GPUs (as on the login node of a cluster), or by a
toolkit newer than the driver.
"""

import re
import warnings
from dataclasses import dataclass

import torch

from ops import cuda_kernels
from ops.library import contents_of, loaded_library

# Errors that say nothing about the kernels: a later call may succeed.
NO_VERDICT = "out of memory|busy or unavailable|MemoryAllocation|DevicesUnavailable"
# Errors of the CUDA runtime, by name or text.
DRIVER_TOO_OLD = "driver version is insufficient|InsufficientDriver"
NO_CODE = "no kernel image|NoKernelImage|kernel image is invalid|InvalidKernelImage"
PTX_FAILS = "PTX was compiled with|UnsupportedPtx|PTX JIT|InvalidPtx|JitCompil"
DRIVER_MISMATCH = "unsupported display driver|DriverMismatch|forward compatibility|CompatNotSupported"
NO_SUCH_DEVICE = "invalid device ordinal|InvalidDevice|no CUDA-capable device|cudaErrorNoDevice"


@dataclass(frozen=True)
class Fault:
    """The reason why the kernels do not run on a device, and the remedy."""

    reason: str
    remedy: str
    wrong_numbers: bool = False
    """They run, with wrong results"""
    is_known: bool = True
    """The cause is the machine, not the kernels"""

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


_tried: dict[int, Fault | None] = {}
_warned: set[int] = set()


def fault_on(index: int) -> Fault | None:
    """The fault of the kernels on the device cuda:index; None if they run, or if the test was inconclusive."""
    if index in _tried:
        return _tried[index]
    if torch.cuda.is_current_stream_capturing():  # nothing may wait for the device now
        return None
    device = torch.device("cuda", index)
    fault = _too_old(device)
    if fault is None:
        try:
            if not numbers_are_right(device):
                fault = Fault(
                    "the CUDA kernels give wrong numbers there",
                    "D3Q_OPS_CUDA=0 python -m ops.build builds without them",
                    wrong_numbers=True,
                )
        except RuntimeError as error:
            if re.search(NO_VERDICT, str(error), re.IGNORECASE):
                return None
            fault = explain(str(error), device)
    _tried[index] = fault
    return fault


def warn_once(index: int, fault: Fault, instead: str) -> None:
    """Warn once per device."""
    if index not in _warned:
        _warned.add(index)
        warnings.warn(f"cuda:{index}: deformable attention runs with {instead}: {fault}", stacklevel=2)


def numbers_are_right(device: torch.device) -> bool:
    """Whether a minimal call of the kernels gives the right result. Raises RuntimeError if they do not run there."""
    with torch.no_grad():
        value = torch.tensor([1.0, 2.0, 3.0, 4.0], device=device).repeat_interleave(8).view(1, 4, 1, 8)
        middle, weights = (torch.full(shape, 0.5, device=device) for shape in ((1, 1, 1, 1, 1, 2), (1, 1, 1, 1, 1)))
        output = torch.ops.d3q.ms_deform_attn_cuda(value, [2, 2], middle, weights)
        return bool((output == 1.25).all())  # sync


def _too_old(device: torch.device) -> Fault | None:
    capability = torch.cuda.get_device_capability(device)
    if capability >= cuda_kernels.OLDEST_DEVICE:
        return None
    needed = ".".join(map(str, cuda_kernels.OLDEST_DEVICE))
    return Fault(
        f"the CUDA kernels need compute capability {needed}, {device} has {'.'.join(map(str, capability))}",
        "D3Q_OPS_BACKEND=grid_sample chooses what such GPUs get",
    )


def explain(error: str, device: torch.device) -> Fault:
    """Translate an error of the CUDA runtime into reason and remedy."""
    library = loaded_library()
    contents = contents_of(library) if library is not None else None
    toolkit = f"CUDA {contents.toolkit}" if contents and contents.toolkit else "a CUDA toolkit"
    built_for = ", ".join(contents.architectures) if contents else ""
    major, minor = torch.cuda.get_device_capability(device)
    rebuild = f"TORCH_CUDA_ARCH_LIST={major}.{minor} python -m ops.build"
    driver = _driver_version()

    def is_one(kind: str) -> bool:
        return re.search(kind, error, re.IGNORECASE) is not None

    if is_one(DRIVER_TOO_OLD):
        return Fault(
            f"the kernels were built with {toolkit}, for which the driver{driver} is too old",
            "update the driver, or build with an older toolkit: CUDA_HOME=/usr/local/cuda-12.x python -m ops.build",
        )
    if is_one(NO_CODE):
        built = f" ({built_for})" if built_for else ""
        return Fault(f"the kernels were built for other GPUs{built} than this, of {major}.{minor}", f"run {rebuild}")
    if is_one(PTX_FAILS):
        return Fault(
            f"the kernels have no machine code for {major}.{minor}, and the driver{driver} cannot compile their PTX, "
            f"which {toolkit} made",
            f"run {rebuild}, or update the driver",
        )
    if is_one(DRIVER_MISMATCH):
        return Fault(
            f"the driver and its library libcuda do not fit together{driver} ({first_line(error)})",
            "restart the machine after an update of the driver, or take a container without libcuda of its own",
        )
    if is_one(NO_SUCH_DEVICE):
        return Fault(
            f"the kernels' CUDA runtime does not see {device} ({first_line(error)})",
            "set CUDA_VISIBLE_DEVICES before the process starts, and nowhere in it",
        )
    words = f"the CUDA kernels fail there: {first_line(error)}"
    return Fault(words, "python -m ops.build --check tells more", is_known=False)


def first_line(error: str) -> str:
    return error.splitlines()[0].strip() if error.strip() else "no message"


def _driver_version() -> str:
    """The driver's CUDA version as " (CUDA 12.4)"; empty if unknown."""
    ask = getattr(torch._C, "_cuda_getDriverVersion", None)  # not in a torch without CUDA
    number = ask() if ask is not None else 0
    return f" (CUDA {number // 1000}.{number % 1000 // 10})" if number else ""
