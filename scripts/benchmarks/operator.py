"""Multi-scale deformable attention: forward and backward, every backend against grid_sample.

The shapes of a full-size detector on one 800x800 image: 8 heads of 32 channels, 5 levels, 4 points; in the encoder
every one of the 53,294 tokens is a query, the decoder has 300, 900 or 2,000. "head-major" is a value whose memory is
ordered (B, M, S, D).

On a GPU, the memory limit is the time to read every input once and write every result once, at the speed of a copy in
the same memory: no kernel can be faster. The L2 limit is the time to read the four neighbours of every sample, at the
speed at which torch sums data in the L2 cache: a kernel is faster only by hits in the L1 cache. "share of ... limit" is
the limit divided by the time. Times on a GPU are those of several consecutive calls.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ops.backends import choose_backend, forced_backend
from ops.ms_deform_attn import ms_deform_attn
from scripts.benchmarks.harness import Cell, Table, median, peak_mebibytes, seconds_alternately

SHAPES = ((200, 200), (100, 100), (50, 50), (25, 25), (13, 13))
HEADS, WIDTH, POINTS = 8, 32, 4
CALLS = 20
"""Consecutive calls on a GPU, so that synchronisation does not count"""
COPIED = 2**29
"""Bytes of the copy that measures a GPU's memory"""
PASSES = 64
"""Over what lies in the L2 cache, to measure that"""


@dataclass(frozen=True)
class Bandwidth:
    """Of a GPU, bytes per second, read and written together."""

    memory: float
    l2: float


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
    bandwidth = measure_bandwidth(device, repeats=options.repeats) if device.type == "cuda" else None
    tables = [
        Table(
            f"{'encoder' if not count else f'decoder, {count:,} queries'}, {options.dtype}",
            list(_rows(count, device, dtype, bandwidth, repeats=options.repeats)),
        )
        for count in options.queries
    ]
    if bandwidth is not None:
        speeds: dict[str, Cell] = {"copy, GB/s": bandwidth.memory / 1e9, "reads from L2, GB/s": bandwidth.l2 / 1e9}
        tables.append(Table("limits of the device", [speeds]))
    return tables


def measure_bandwidth(device: torch.device, *, repeats: int) -> Bandwidth:
    """Of a GPU: copying a large tensor, and summing one of a quarter of the L2 cache over and over."""
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    cached = torch.ones(torch.cuda.get_device_properties(device).L2_cache_size // 16, device=device)
    passes = cached.expand(PASSES, -1)
    milliseconds = _medians({"copy": lambda: copy.copy_(source), "l2": lambda: passes.sum(1)}, device, repeats)
    return Bandwidth(2e3 * COPIED / milliseconds["copy"], 1e3 * PASSES * cached.nbytes / milliseconds["l2"])


def make_call(queries: int, *, device: torch.device, dtype: torch.dtype, head_major: bool = False) -> Call:
    """Samples within about two cells of each query's place, on every level; `queries` 0: every token is a query."""
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


def limits(call: Call, bandwidth: Bandwidth) -> dict[str, float]:
    """Lower limits of a forward pass, and of forward and backward together, in milliseconds; see the module."""
    inputs = call.value.nbytes + call.locations.nbytes + call.weights.nbytes
    forward = inputs + call.output_gradient.nbytes  # the output is as large
    neighbours = 4 * call.weights.numel() * call.value.shape[-1] * call.value.element_size()
    return {
        "forward, memory": 1e3 * forward / bandwidth.memory,
        "both, memory": 1e3 * (2 * forward + inputs) / bandwidth.memory,
        "forward, L2": 1e3 * neighbours / bandwidth.l2,
    }


def _rows(
    queries: int, device: torch.device, dtype: torch.dtype, bandwidth: Bandwidth | None, *, repeats: int
) -> Iterator[dict[str, Cell]]:
    call = make_call(queries, device=device, dtype=dtype)
    fast = choose_backend(device.type)
    runs: dict[str, tuple[Call, str]] = {name: (call, name) for name in ("grid_sample", "embedding_bag")}
    if fast not in runs:
        runs[fast] = (call, fast)
        head_major = make_call(queries, device=device, dtype=dtype, head_major=True)
        runs[f"{fast}, head-major"] = (head_major, fast)
    forward = _medians(
        {name: partial(call.forward, backend) for name, (call, backend) in runs.items()}, device, repeats
    )
    both = _medians({name: partial(call.both, backend) for name, (call, backend) in runs.items()}, device, repeats)
    for name, (call, backend) in runs.items():
        row: dict[str, Cell] = {
            "backend": name,
            "forward, ms": forward[name],
            "times faster": forward["grid_sample"] / forward[name],
            "forward and backward, ms": both[name],
            "times faster ": both["grid_sample"] / both[name],
            "peak memory of both, MiB": peak_mebibytes(partial(call.both, backend)),
        }
        if bandwidth is not None:
            least = limits(call, bandwidth)
            row["forward, share of memory limit"] = least["forward, memory"] / forward[name]
            row["both, share of memory limit"] = least["both, memory"] / both[name]
            row["forward, share of L2 limit"] = least["forward, L2"] / forward[name]
        yield row


def _medians(work: dict[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, float]:
    """Milliseconds of one call of each."""
    calls = CALLS if device.type == "cuda" else 1
    several = {name: partial(_repeat, run, calls) for name, run in work.items()}
    return {name: 1e3 * median(v) / calls for name, v in seconds_alternately(several, repeats=repeats).items()}


def _repeat(run: Callable[[], object], calls: int) -> None:
    for _ in range(calls):
        run()
