"""Objects per image -> query count per image."""

import torch
from torch import Tensor, nn

from d3q.density_branch import DensityBranch, count_objects


def query_count(
    objects: Tensor, *, queries_per_object: float, min_queries: int, max_queries: int, round_objects: bool = True
) -> Tensor:
    """Queries for an estimated number of objects, rounded up.

    objects         (B,)  estimated objects per image, >= 0
    round_objects   round the estimate half to even before it is multiplied, as published: counts are then multiples
                    of a whole queries_per_object
    returns         (B,)  int64 in [min_queries, max_queries]

    Source: Ye et al., D3Q, JSTARS 2025, dynamic query.
    """
    # A diverged map (NaN) gives the floor; the loss reports it.
    objects = objects.double().nan_to_num(nan=0.0)
    queries = torch.ceil((objects.round() if round_objects else objects) * queries_per_object)
    return queries.clamp(min_queries, max_queries).long()


class DensityBudget(nn.Module):
    """The query budget of D3Q: a density map sets the number of queries of each image.

    density_branch       (B, D, H, W) -> (B, 1, H, W)
    queries_per_object   queries per estimated object
    min_queries          floor of every image
    max_queries          ceiling of every image
    round_objects        see `query_count`
    count_padding        the count reads the whole map (published); False: the map is 0 in the padding
    """

    def __init__(
        self,
        *,
        density_branch: DensityBranch,
        queries_per_object: float,
        min_queries: int,
        max_queries: int,
        round_objects: bool = True,
        count_padding: bool = True,
    ) -> None:
        super().__init__()
        self.density_branch = density_branch
        self.queries_per_object = queries_per_object
        self.min_queries = min_queries
        self.max_queries = max_queries
        self.round_objects = round_objects
        self.count_padding = count_padding

    def forward(self, feature_map: Tensor, padding_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, D, H, W), (B, H, W) -> num_queries (B,) int64; aux with `density_map` and `predicted_count` (B,).

        The count is not differentiable: the density learns from its own loss alone.
        """
        density_map = self.density_branch(feature_map)
        if not self.count_padding:
            density_map = density_map.masked_fill(padding_mask[:, None], 0.0)
        predicted_count = count_objects(density_map.detach())
        return self.queries_for(predicted_count), {"density_map": density_map, "predicted_count": predicted_count}

    def queries_for(self, objects: Tensor) -> Tensor:
        """(B,) objects -> (B,) int64 queries."""
        return query_count(
            objects,
            queries_per_object=self.queries_per_object,
            min_queries=self.min_queries,
            max_queries=self.max_queries,
            round_objects=self.round_objects,
        )
