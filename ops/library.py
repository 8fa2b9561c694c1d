"""Where the compiled library is, and whether it is loaded. Nothing here compiles or writes.

Its file name holds a hash of all that it was made of: a build of other sources, another torch or other flags is never
loaded.
"""

import glob
import hashlib
import os
import platform
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch

from ops import cuda_build

SOURCES = Path(__file__).parent / "csrc"
# 2.10 is the oldest torch that pyproject.toml allows; LibTorch's stable ABI then serves every newer one.
FLAGS = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-trapping-math",  # else comparisons of many samples at once are not allowed
    "-Wno-psabi",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
)
AVX2_FLAGS = ("-mavx2", "-mfma")
CUDA_MARK = "_cuda_"
_loaded: Path | None = None


def has_avx2_variant() -> bool:
    """Whether this machine's kind of processor can have AVX2; the library asks at run time whether it has."""
    return platform.machine().lower() in ("x86_64", "amd64")


def source_hash() -> str:
    """Changes with every source file, the flags, the version of torch and the kind of machine."""
    made_of = (torch.__version__, platform.system(), platform.machine(), *FLAGS, *AVX2_FLAGS, *cuda_build.FLAGS)
    digest = hashlib.sha256("\n".join(made_of).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".cpp", ".h", ".cu", ".cuh"):
            content = path.read_bytes()
            digest.update(f"\n{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def library_folders() -> list[Path]:
    """Beside the sources, or in the user's cache where that is read-only."""
    folders = [Path(__file__).parent / "_build"]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if cache.is_absolute():  # not so where there is no home
        folders.append(cache / "d3q" / "ops")
    return folders


def library_name(architectures: Sequence[str] = ()) -> str:
    """Of the library with CUDA kernels for these architectures, or without any."""
    return f"ms_deform_attn_{source_hash()}{CUDA_MARK if architectures else ''}{'_'.join(architectures)}.so"


def architectures_of(library: Path) -> list[str]:
    """Those for which a built library has CUDA kernels."""
    return library.stem.partition(CUDA_MARK)[2].split("_") if CUDA_MARK in library.stem else []


def built_library(name: str | None = None) -> Path | None:
    """The library that fits these sources and this torch, if it was built; of several, the last one built.

    name   of the library wanted, if not just any
    """
    pattern = glob.escape(name) if name else f"ms_deform_attn_{source_hash()}*.so"
    candidates = [path for folder in library_folders() for path in folder.glob(pattern) if path.is_file()]
    return max(candidates, key=lambda path: path.stat().st_mtime, default=None)


def is_loaded() -> bool:
    return hasattr(torch.ops.d3q, "ms_deform_attn_cpu")


def loaded_library() -> Path | None:
    return _loaded


def load_built_library() -> None:
    """Makes the compiled kernels known to torch. A library that cannot be loaded is a warning: torch can do without."""
    global _loaded
    path = built_library()
    if path is None or is_loaded():
        return
    try:
        torch.ops.load_library(path)
        _loaded = path
    except (OSError, RuntimeError) as error:
        warnings.warn(
            f"{path} cannot be loaded, deformable attention runs in pure PyTorch; delete the file and run "
            f"`python -m ops.build` ({error})",
            stacklevel=2,
        )
