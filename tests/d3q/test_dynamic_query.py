"""Objects per image -> queries per image, and the budget as a module."""

import pytest
import torch

from d3q import DensityBranch, DensityBudget, count_objects, query_count

LIMITS = {"min_queries": 1, "max_queries": 10**6}


@pytest.mark.parametrize(
    ("objects", "queries"),
    [(0.0, 0), (0.49, 0), (0.5, 0), (0.51, 3), (1.5, 6), (2.5, 6), (3.5, 12), (10.4999, 30), (665.5, 1998)],
)
def test_objects_are_rounded_half_to_even_before_the_multiplication(objects: float, queries: int) -> None:
    count = query_count(torch.tensor([objects]), queries_per_object=3.0, min_queries=0, max_queries=10**6)
    assert count.tolist() == [queries]


def test_an_estimate_need_not_be_rounded() -> None:
    objects = torch.tensor([0.4, 1.5, 2.5])
    options = {"queries_per_object": 3.0, "min_queries": 0, "max_queries": 100}
    assert query_count(objects, **options).tolist() == [0, 6, 6]
    assert query_count(objects, round_objects=False, **options).tolist() == [2, 5, 8]


def test_counts_are_clamped_image_by_image() -> None:
    objects = torch.tensor([0.0, 33.0, 34.0, 666.0, 667.0, 1e9])
    count = query_count(objects, queries_per_object=3.0, min_queries=100, max_queries=2000)
    assert count.dtype == torch.int64
    assert count.tolist() == [100, 100, 102, 1998, 2000, 2000]


def test_a_fractional_factor_rounds_up() -> None:
    count = query_count(torch.tensor([1.0, 2.0, 5.0]), queries_per_object=1.5, **LIMITS)
    assert count.tolist() == [2, 3, 8]


def test_many_objects_stay_exact() -> None:
    """16,777,217 is the first integer that float32 cannot hold."""
    count = query_count(torch.tensor([5592407.0]), queries_per_object=3.0, min_queries=1, max_queries=10**9)
    assert count.tolist() == [16777221]


def test_counting_integrates_the_whole_map_in_float32() -> None:
    density_map = torch.full((2, 1, 40, 50), 0.1, dtype=torch.bfloat16)
    density_map[1, :, 20:] = 0
    counts = count_objects(density_map)
    assert counts.dtype == torch.float32
    value = float(torch.tensor(0.1, dtype=torch.bfloat16))
    assert counts.tolist() == pytest.approx([2000 * value, 1000 * value], rel=1e-5)


@pytest.fixture
def budget() -> DensityBudget:
    torch.manual_seed(0)
    branch = DensityBranch(in_channels=4, hidden_channels=6, initial_density=0.2)
    return DensityBudget(density_branch=branch, queries_per_object=2.0, min_queries=5, max_queries=300)


def test_an_untrained_branch_predicts_its_initial_density(budget: DensityBudget) -> None:
    with torch.no_grad():
        density = budget.density_branch(torch.zeros(1, 4, 7, 9))
        budget.density_branch.output.weight.zero_()
    assert density.shape == (1, 1, 7, 9)
    exact = budget.density_branch(torch.randn(1, 4, 7, 9))
    torch.testing.assert_close(exact, torch.full_like(exact, 0.2))


def test_the_count_is_detached_and_the_density_is_not(budget: DensityBudget) -> None:
    features = torch.randn(2, 4, 8, 8, requires_grad=True)
    num_queries, aux = budget(features, torch.zeros(2, 8, 8, dtype=torch.bool))
    assert not aux["predicted_count"].requires_grad
    assert not num_queries.requires_grad
    torch.testing.assert_close(aux["predicted_count"], aux["density_map"].detach().sum((1, 2, 3)))
    expected = (aux["predicted_count"].round() * 2).clamp(5, 300).long()
    assert torch.equal(num_queries, expected)
    aux["density_map"].sum().backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


def test_padding_is_counted_as_published_unless_told_otherwise(budget: DensityBudget) -> None:
    features = torch.randn(1, 4, 8, 8)
    padded = torch.zeros(1, 8, 8, dtype=torch.bool)
    padded[:, 4:] = True
    plain = budget(features, torch.zeros_like(padded))[1]
    assert torch.equal(budget(features, padded)[1]["predicted_count"], plain["predicted_count"])
    budget.count_padding = False
    num_queries, aux = budget(features, padded)
    assert torch.equal(aux["density_map"][:, :, :4], plain["density_map"][:, :, :4])
    assert not aux["density_map"][:, :, 4:].any()
    torch.testing.assert_close(aux["predicted_count"], plain["density_map"][:, :, :4].sum((1, 2, 3)).detach())
    assert torch.equal(num_queries, budget.queries_for(aux["predicted_count"]))


def test_the_density_stays_float32_under_autocast(budget: DensityBudget) -> None:
    features = torch.randn(1, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = budget.density_branch(features.bfloat16())
    assert under_autocast.dtype == torch.float32
    torch.testing.assert_close(under_autocast, budget.density_branch(features.bfloat16().float()))
