"""Multi-scale deformable attention: forward and backward, every backend against grid_sample.

The shapes of a full-size detector on one 800x800 image: 8 heads of 32 channels, 5 levels, 4 points; in the encoder
every one of the 53,294 tokens is a query, the decoder has 300, 900 or 2,000. "head-major" is a value whose memory is
ordered (B, M, S, D). "share of limit" is, on a GPU, how near the time comes to the L2 traffic that cannot be avoided.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ops.ms_deform_attn import choose_backend, forced_backend, ms_deform_attn
from scripts.benchmarks.harness import Cell, Table, median, peak_mebibytes, seconds_alternately

SHAPES = ((200, 200), (100, 100), (50, 50), (25, 25), (13, 13))
HEADS, WIDTH, POINTS = 8, 32, 4
L2_BYTES_PER_SECOND = 5.5e12
"""Assumed of an H100; the share of the limit is no better than this figure."""


@dataclass(frozen=True)
class Call:
    """The arguments of one call, and the gradient of its result."""

    value: Tensor
    locations: Tensor
    weights: Tensor
    output_gradient: Tensor

    def forward(self, backend: str) -> Tensor:
        with forced_backend(backend), torch.no_grad():
            return ms_deform_attn(self.value, SHAPES, self.locations, self.weights)

    def both(self, backend: str) -> tuple[Tensor, ...]:
        with forced_backend(backend):
            output = ms_deform_attn(self.value, SHAPES, self.locations, self.weights)
            return torch.autograd.grad(output, (self.value, self.locations, self.weights), self.output_gradient)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--queries", type=int, nargs="+", default=[0, 300, 900, 2000], help="0: the encoder's")


def measure(options: argparse.Namespace) -> list[Table]:
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    return [
        Table(
            f"{'encoder' if not count else f'decoder, {count:,} queries'}, {options.dtype}",
            list(_rows(count, device, dtype, repeats=options.repeats)),
        )
        for count in options.queries
    ]


def make_call(queries: int, *, device: torch.device, dtype: torch.dtype, head_major: bool = False) -> Call:
    """Samples within about two cells of each query's place, on every level; `queries` 0 stands for every token."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.tensor([(width, height) for height, width in SHAPES], dtype=torch.float32)
    if queries:
        places = torch.rand(queries, 2, generator=generator)
    else:
        places = torch.cat([_centres(height, width) for height, width in SHAPES])
    offsets = torch.randn(1, len(places), HEADS, len(SHAPES), POINTS, 2, generator=generator) * 2 / cells[:, None]
    logits = torch.randn(1, len(places), HEADS, len(SHAPES) * POINTS, generator=generator)
    tokens = sum(height * width for height, width in SHAPES)
    value = torch.randn(1, tokens, HEADS, WIDTH, generator=generator).to(device, dtype)
    if head_major:
        value = value.transpose(1, 2).contiguous().transpose(1, 2)
    return Call(
        value=value.requires_grad_(),
        locations=(places[None, :, None, None, None] + offsets).to(device).requires_grad_(),
        weights=logits.softmax(-1).view(offsets.shape[:-1]).to(device, dtype).requires_grad_(),
        output_gradient=torch.randn(1, len(places), HEADS * WIDTH, generator=generator).to(device, dtype),
    )


def _centres(height: int, width: int) -> Tensor:
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([(x.flatten() + 0.5) / width, (y.flatten() + 0.5) / height], dim=-1)


def _rows(queries: int, device: torch.device, dtype: torch.dtype, *, repeats: int) -> Iterator[dict[str, Cell]]:
    call = make_call(queries, device=device, dtype=dtype)
    fast = choose_backend(device.type)
    runs: dict[str, tuple[Call, str]] = {name: (call, name) for name in ("grid_sample", "embedding_bag")}
    if fast not in runs:
        runs[fast] = (call, fast)
        head_major = make_call(queries, device=device, dtype=dtype, head_major=True)
        runs[f"{fast}, head-major"] = (head_major, fast)
    forward = _medians({name: partial(call.forward, backend) for name, (call, backend) in runs.items()}, repeats)
    both = _medians({name: partial(call.both, backend) for name, (call, backend) in runs.items()}, repeats)
    for name, (call, backend) in runs.items():
        row: dict[str, Cell] = {
            "backend": name,
            "forward, ms": forward[name],
            "times faster": forward["grid_sample"] / forward[name],
            "forward and backward, ms": both[name],
            "times faster ": both["grid_sample"] / both[name],
            "peak memory of both, MiB": peak_mebibytes(partial(call.both, backend)),
        }
        if device.type == "cuda":
            row["share of limit"] = _limit_milliseconds(call) / forward[name]
        yield row


def _medians(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    return {name: 1e3 * median(values) for name, values in seconds_alternately(work, repeats=repeats).items()}


def _limit_milliseconds(call: Call) -> float:
    """Of the forward pass on an H100: four rows per sample out of the L2 cache."""
    rows = 4 * call.weights.numel()
    return 1e3 * rows * WIDTH * call.value.element_size() / L2_BYTES_PER_SECOND
