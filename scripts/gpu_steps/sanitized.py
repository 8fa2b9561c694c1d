"""Small calls of the CUDA kernels, forward and backward, for compute-sanitizer: python -m scripts.gpu_steps.sanitized

All dtypes; narrow and wide heads; few queries, numbers of queries that fill no block, and every token.
"""

import torch

from engine.console import guard_console
from ops import ms_deform_attn
from ops.backends import forced_backend

SHAPES = [(13, 9), (7, 5), (4, 3), (1, 1)]
TOKENS = sum(height * width for height, width in SHAPES)
CASES = [(1, 32), (37, 8), (300, 128), (TOKENS, 32)]
"""Queries and width of a head"""
BATCH, HEADS, POINTS = 2, 8, 4


def call(queries: int, width: int, dtype: torch.dtype) -> None:
    """Raises RuntimeError where a result is not finite."""
    generator = torch.Generator().manual_seed(queries)
    samples = (BATCH, queries, HEADS, len(SHAPES), POINTS)
    inputs = [
        torch.randn(BATCH, TOKENS, HEADS, width, generator=generator).to("cuda", dtype),
        (torch.rand(*samples, 2, generator=generator) * 1.4 - 0.2).cuda(),
        torch.rand(samples, generator=generator).to("cuda", dtype),
    ]
    inputs = [tensor.requires_grad_() for tensor in inputs]
    gradient = torch.randn(BATCH, queries, HEADS * width, generator=generator).to("cuda", dtype)
    with forced_backend("cuda"):
        output = ms_deform_attn(inputs[0], SHAPES, inputs[1], inputs[2])
        found = [output, *torch.autograd.grad(output, inputs, gradient)]
    if not all(bool(tensor.cpu().isfinite().all()) for tensor in found):
        raise RuntimeError(f"{queries} queries, heads of {width}, {dtype}: not finite")


if __name__ == "__main__":
    guard_console()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for queries, width in CASES:
            call(queries, width, dtype)
    print("all results are finite")
