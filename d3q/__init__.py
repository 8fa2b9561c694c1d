"""D3Q: an object query count that follows a density map, and a box loss for tiny objects. Needs only torch.

Source: Ye et al., Density-Aware DETR With Dynamic Query for End-to-End Tiny Object Detection, JSTARS 2025.
"""

from d3q.count_loss import CountLoss, log_count_error
from d3q.density_branch import DensityBranch, count_objects
from d3q.density_loss import DensityLoss, density_focal_loss, density_target, density_targets
from d3q.dynamic_query import DensityBudget, query_count
from d3q.tiny_box import LogSizeL1

__all__ = [
    "CountLoss",
    "DensityBranch",
    "DensityBudget",
    "DensityLoss",
    "LogSizeL1",
    "count_objects",
    "density_focal_loss",
    "density_target",
    "density_targets",
    "log_count_error",
    "query_count",
]
