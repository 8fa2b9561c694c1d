"""Multi-scale deformable attention: definition, backends, kernels and their build. Nothing else of a detector."""

from ops.allocation import tune_allocation
from ops.library import load_built_library
from ops.ms_deform_attn import ms_deform_attn

__all__ = ["ms_deform_attn", "tune_allocation"]

load_built_library()
