"""Find and load the compiled library. Nothing here compiles or writes.

Its file name holds the versions it was built with and a hash of its sources and flags: a build of other sources,
another torch or other flags is never loaded.
"""

import glob
import hashlib
import os
import platform
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
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
    "-fno-trapping-math",  # allows vectorised comparisons
    "-Wno-psabi",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
)
AVX2_FLAGS = ("-mavx2", "-mfma")
_loaded: Path | None = None


@dataclass(frozen=True)
class Contents:
    """What a library was built with, from its file name.

    torch           its version; empty in old libraries, whose names do not have it
    architectures   of the CUDA kernels: ("80", "90+PTX"); none without such kernels
    toolkit         version of the CUDA toolkit that compiled those
    has_cpu         whether it has the CPU kernels
    """

    torch: str
    architectures: tuple[str, ...] = ()
    toolkit: str = ""
    has_cpu: bool = True


def has_avx2_variant() -> bool:
    """Whether this processor architecture may have AVX2; the library checks at run time whether it does."""
    return platform.machine().lower() in ("x86_64", "amd64")


def source_hash() -> str:
    """Hash of all source files, the flags, the version of torch and the platform."""
    flags = (*FLAGS, *AVX2_FLAGS, *cuda_build.FLAGS, *cuda_build.LINK_FLAGS)
    made_of = (torch.__version__, platform.system(), platform.machine(), *flags)
    digest = hashlib.sha256("\n".join(made_of).encode())
    for path in sorted(SOURCES.iterdir()):
        if path.suffix in (".cpp", ".h", ".cu", ".cuh"):
            content = path.read_bytes()
            digest.update(f"\n{path.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def library_folders() -> list[Path]:
    """Beside the sources, or in the user's cache if that is read-only."""
    folders = [Path(__file__).parent / "_build"]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if cache.is_absolute():  # not without a home folder
        folders.append(cache / "d3q" / "ops")
    return folders


def library_name(architectures: Sequence[str] = (), toolkit: str = "", *, has_cpu: bool = True) -> str:
    """File name of a library with CUDA kernels for these architectures (or none), with or without CPU kernels."""
    cuda = f"_cuda{toolkit}_{'_'.join(architectures)}" if architectures else ""
    return f"{_common_name()}{'' if has_cpu else '_nocpu'}{cuda}.so"


def _common_name() -> str:
    return f"ms_deform_attn_torch{torch.__version__}_{source_hash()}"


def contents_of(library: Path) -> Contents:
    """Contents of a library in library_folders(), whatever torch and sources it was built with."""
    pattern = r"ms_deform_attn_(?:torch(.+?)_)?[0-9a-f]{16}(_nocpu)?(?:_cuda([^_]*)_(.+))?"
    match = re.fullmatch(pattern, library.stem)
    version, without_cpu, toolkit, architectures = match.groups(default="") if match else ("",) * 4
    return Contents(version, tuple(architectures.split("_")) if architectures else (), toolkit, not without_cpu)


def fitting_libraries(name: str | None = None) -> list[Path]:
    """Libraries built from these sources for this torch, the newest first.

    name   only the library of this name
    """
    return _libraries(glob.escape(name or _common_name()) + ("" if name else "*.so"))


def _libraries(pattern: str) -> list[Path]:
    paths = [path for folder in library_folders() for path in folder.glob(pattern) if path.is_file()]
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def is_loaded() -> bool:
    """Whether the CPU kernels are loaded."""
    return hasattr(torch.ops.d3q, "ms_deform_attn_cpu")


def loaded_library() -> Path | None:
    return _loaded


def why_missing() -> str:
    """A message: why no library is loaded, and the remedy."""
    others = [path for path in _libraries("ms_deform_attn_*.so") if path not in fitting_libraries()]
    if not others:
        return "the library is not built for this code and torch; run python -m ops.build"
    version = contents_of(others[0]).torch
    if version == torch.__version__:
        made = "from other sources"
    else:
        made = f"with torch {version}, this is {torch.__version__}" if version else "by an earlier version of this code"
    return f"{others[0]} was built {made}, and is not taken; run python -m ops.build"


def load_built_library() -> None:
    """Load the compiled kernels into torch. Warns if a library fails to load, as pure PyTorch works too.

    Also warns if only libraries of other sources or another torch exist.
    """
    global _loaded
    if _loaded is not None or is_loaded():
        return
    fitting = fitting_libraries()
    for path in fitting:
        try:
            torch.ops.load_library(path)
        except (OSError, RuntimeError) as error:
            warnings.warn(
                f"{path} cannot be loaded, deformable attention runs in pure PyTorch; delete the file and run "
                f"`python -m ops.build` ({error})",
                stacklevel=2,
            )
        else:
            _loaded = path
            return
    is_building = "ops.build" in sys.orig_argv
    if not fitting and not is_building and _libraries("ms_deform_attn_*.so"):
        warnings.warn(f"deformable attention runs in pure PyTorch: {why_missing()}", stacklevel=2)
