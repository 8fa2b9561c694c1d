"""The backends of the operator, and the choice of one.

| backend         | what                                                  | chosen by default                         |
|-----------------|-------------------------------------------------------|-------------------------------------------|
| `cpp`           | compiled kernels (`ops/csrc/`, `python -m ops.build`) | on CPUs, if they are built                |
| `embedding_bag` | pure PyTorch                                          | on CPUs without them                      |
| `cuda`          | compiled kernels (`ops/cuda_kernels.py`)              | on GPUs, if they are built and run, in    |
|                 |                                                       | float32 and half precision, for the usual |
|                 |                                                       | widths                                    |
| `grid_sample`   | pure PyTorch, the definition (`ops/reference.py`)     | on GPUs otherwise                         |
| `gather`        | pure PyTorch, with second derivatives, much memory    | never                                     |

The environment variable D3Q_OPS_BACKEND forces one of them; it is read when `ops` is imported. `forced_backend` does so
for the calls of one thread. Backward pass and recomputation use the choice of their forward pass.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from ops import cuda_kernels, devices
from ops.embedding_bag import ms_deform_attn_embedding_bag, ms_deform_attn_gather
from ops.library import is_loaded, loaded_library, why_missing
from ops.reference import ms_deform_attn_reference

Form = Callable[[Tensor, Sequence[tuple[int, int]], Tensor, Tensor], Tensor]

FORMS: dict[str, Form] = {
    "embedding_bag": ms_deform_attn_embedding_bag,
    "grid_sample": ms_deform_attn_reference,
    "gather": ms_deform_attn_gather,
}
BACKENDS = ("cpp", "cuda", *FORMS)

_OF_EVERY_THREAD = os.environ.get("D3Q_OPS_BACKEND") or "auto"
# Not a ContextVar, which torch.compile cannot trace in torch 2.11.
_OF_THIS_THREAD = threading.local()
_OF_THIS_THREAD.forced = _OF_EVERY_THREAD


def choose_backend(device_type: str, index: int | None = None, forced: str = "") -> str:
    """The backend for a device: the forced one, or the fastest that runs there.

    index   of a GPU, on which the kernels are tested once; None: assume that they run
    forced  backend or auto; default: the choice of this thread

    Raises ValueError if the forced backend does not run there.
    """
    forced = forced or forced_choice()
    if forced == "auto":
        if device_type == "cuda":
            return _kernels_on(index, forced) if cuda_kernels.are_loaded() else "grid_sample"
        return "cpp" if device_type == "cpu" and is_loaded() else "embedding_bag"
    if forced not in BACKENDS:
        raise ValueError(f"D3Q_OPS_BACKEND: unknown backend {forced!r}; choose auto, {', '.join(BACKENDS)}")
    if forced == "cpp" and not is_loaded():
        why = why_missing() if loaded_library() is None else "the library has no CPU kernels; run python -m ops.build"
        raise ValueError(f"D3Q_OPS_BACKEND=cpp: {why}")
    if forced == "cpp" and device_type != "cpu":
        raise ValueError(f"D3Q_OPS_BACKEND=cpp runs on the CPU, the tensors are on {device_type}; choose grid_sample")
    if forced == "cuda" and not cuda_kernels.are_loaded():
        raise ValueError("D3Q_OPS_BACKEND=cuda: the library has no CUDA kernels; run python -m ops.build with an nvcc")
    if forced == "cuda" and device_type != "cuda":
        raise ValueError(f"D3Q_OPS_BACKEND=cuda runs on GPUs, the tensors are on {device_type}; choose auto")
    return _kernels_on(index, forced) if forced == "cuda" else forced


def is_forced() -> bool:
    """Whether a backend is forced in this thread."""
    return forced_choice() != "auto"


def forced_choice() -> str:
    """The forced backend of this thread, or auto."""
    return getattr(_OF_THIS_THREAD, "forced", _OF_EVERY_THREAD)


def _kernels_on(index: int | None, forced: str) -> str:
    """The CUDA kernels, or the backend for a GPU that cannot run them."""
    fault = devices.fault_on(index) if index is not None else None
    if fault is None:
        return "cuda"
    instead = without_cuda_kernels(str(fault), forced)
    devices.warn_once(index or 0, fault, instead)
    return instead


def without_cuda_kernels(reason: str, forced: str) -> str:
    """The backend for a GPU without the kernels. Raises ValueError if they are forced."""
    if forced == "cuda":
        raise ValueError(f"D3Q_OPS_BACKEND=cuda: {reason}; choose grid_sample")
    return "grid_sample"


@contextmanager
def forced_backend(name: str) -> Iterator[None]:
    """Force a backend for all calls of this thread in the context, to compare backends."""
    before = forced_choice()
    _OF_THIS_THREAD.forced = name
    try:
        yield
    finally:
        _OF_THIS_THREAD.forced = before
