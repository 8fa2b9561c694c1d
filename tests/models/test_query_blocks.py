"""Attention in two blocks equals attention under one mask of all queries, and keeps no such mask for backward."""

import pytest
import torch
from torch import Tensor, nn

from datasets.structures import Batch
from models.attention import QueryBlocks, SelfAttention
from models.denoising import Denoising, denoising_blocks, denoising_mask
from models.proposals import query_blocks
from tests.support.shrunken import random_target, small_config, small_detector

DIM, HEADS, QUERIES = 16, 2, 6


def attend_under_one_mask(attention: SelfAttention, queries: Tensor, position: Tensor, blocked: Tensor) -> Tensor:
    """torch's own module with the same weights; blocked (B, T, T)."""
    own = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    own.load_state_dict(
        {
            "in_proj_weight": attention.in_proj.weight,
            "in_proj_bias": attention.in_proj.bias,
            "out_proj.weight": attention.out_proj.weight,
            "out_proj.bias": attention.out_proj.bias,
        }
    )
    seen = queries + position
    return own(seen, seen, queries, attn_mask=blocked.repeat_interleave(HEADS, 0))[0]


@pytest.mark.parametrize("objects", [(3,), (3, 0), (1, 4), (12, 7)])
@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize("counts", [(6, 6), (6, 2)])
def test_blocks_equal_one_mask(objects: tuple[int, ...], mask_padding: bool, counts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    maker = Denoising(hidden_dim=DIM, num_classes=8, num_queries=8, label_noise=0.5, box_noise=1.0)
    denoising = maker([random_target(count) for count in objects])
    front, batch = denoising.content.shape[1], len(objects)
    padding = torch.arange(QUERIES) >= torch.tensor(counts[:batch])[:, None]
    blocks = denoising_blocks(denoising, padding, query_blocks(padding, counts[:batch]), mask_padding=mask_padding)

    blocked = torch.zeros(batch, front + QUERIES, front + QUERIES, dtype=torch.bool)
    blocked[:, front:, :front] = True
    blocked[:, :front] |= denoising_mask(denoising, QUERIES, mask_padding=mask_padding)
    blocked |= nn.functional.pad(padding, (front, 0))[:, None]

    attention = SelfAttention(hidden_dim=DIM, num_heads=HEADS, dropout=0.0)
    queries, position = torch.randn(2, batch, front + QUERIES, DIM)
    expected = attend_under_one_mask(attention, queries, position, blocked)
    torch.testing.assert_close(attention(queries, position, blocks), expected, atol=1e-6, rtol=1e-5)


def test_nothing_is_masked_where_everything_is_seen() -> None:
    maker = Denoising(hidden_dim=DIM, num_classes=8, num_queries=8, label_noise=0.5, box_noise=1.0)
    alone = torch.zeros(1, QUERIES, dtype=torch.bool)
    for objects in (5, 300):  # one group
        blocks = denoising_blocks(
            maker([random_target(objects)]), alone, query_blocks(alone, [QUERIES]), mask_padding=True
        )
        assert blocks == QueryBlocks(front=2 * objects)


def test_a_training_step_keeps_no_mask_of_all_queries() -> None:
    """Whatever the backward pass needs, nothing in it has an entry for every pair of queries."""
    config = small_config("dino_d3q_aitodv2", "model.d3q.min_queries=90")
    detector = small_detector(config)
    batch = Batch(torch.randn(1, 3, 96, 96), torch.zeros(1, 96, 96, dtype=torch.bool), [random_target(40)])
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.untyped_storage().nbytes()) or t, lambda t: t
    ):
        output = detector(batch.images, batch.padding_mask, batch.targets)
    assert output.denoising is not None
    pairs = (output.denoising.logits.shape[2] + output.queries.logits.shape[2]) ** 2
    assert pairs == 170**2
    assert pairs * 4 not in sizes
