"""Multi-scale deformable attention: one definition, and the form of it that is fastest on each device."""

from ops.allocation import tune_allocation
from ops.library import load_built_library
from ops.ms_deform_attn import ms_deform_attn

__all__ = ["ms_deform_attn", "tune_allocation"]

load_built_library()
