"""Which dtype a base model is fast in."""

from __future__ import annotations

import time

import torch

__all__ = ["faster_dtype"]

SIZES = (512, 384, 1536)
"""Tokens, inputs and outputs of the product that is timed."""


def faster_dtype(repeats: int = 10) -> torch.dtype:
    """Times a matrix product on the CPU in float32 and in bfloat16, and returns the faster dtype.

    Processors that multiply bfloat16 natively are about twice as fast in it; others are many times slower.

    Args:
        repeats: How often each product is taken.
    """
    rows, inner, cols = SIZES
    times = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, cols, dtype=dtype)
        torch.mm(left, right)
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(left, right)
        times[dtype] = time.perf_counter() - start
    return min(times, key=lambda dtype: times[dtype])
