"""The benchmarks of whole detectors, on a tiny one: every part is in the tables, and operations are counted right."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from models.attention import MSDeformAttn
from scripts import benchmark
from scripts.benchmarks.model import count_flops
from tests.support.shrunken import SMALL

TINY = ["--repeats", "1", "--side", "64", "--threads", "1", "--device", "cpu", "--set", *SMALL, "model.num_queries=40"]


@pytest.mark.parametrize(
    ("part", "options", "rows", "columns"),
    [
        ("model", ["--queries", "12", "30"], 6, {"wall, ms", "CPU seconds", "GFLOP", "parameters, M"}),
        ("train", ["--objects", "3", "8"], 2, {"forward, CPU s", "losses, CPU s", "backward, CPU s", "wall, s"}),
        ("grow", ["--queries", "12", "30", "--sides", "64", "80", "--batches", "1"], 2, {"queries", "CPU s"}),
    ],
)
def test_tables(part: str, options: list[str], rows: int, columns: set[str], tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = [part, *TINY, "model.d3q.min_queries=12", *options, "--json", str(file)]
    assert benchmark.main(arguments) == 0
    table, *_ = json.loads(file.read_text())["tables"].values()
    assert len(table) == rows
    assert all(columns <= row.keys() and all(row[name] > 0 for name in columns - {"GFLOP"}) for row in table)


def test_deformable_attention_counts() -> None:
    """Four linear layers, and four corners of every sample multiplied and added."""
    attention = MSDeformAttn(hidden_dim=8, num_levels=2, num_heads=2, num_points=3)
    queries, memory = torch.randn(1, 5, 8), torch.randn(1, 20, 8)
    references, mask = torch.rand(1, 5, 2, 2), torch.zeros(1, 20, dtype=torch.bool)
    with torch.no_grad():
        counted = count_flops(
            nn.ModuleList([attention]), lambda: attention(queries, references, memory, mask, ((4, 4), (2, 2)))
        )
    samples = 2 * 2 * 3
    linear = 2 * (5 * 8 * samples * 2 + 5 * 8 * samples + 20 * 8 * 8 + 5 * 8 * 8)
    assert counted == linear + 5 * samples * (8 // 2) * 4 * 2
