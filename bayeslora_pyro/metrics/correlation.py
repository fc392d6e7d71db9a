"""Whether two numbers of each item go together, such as a predicted standard deviation and an absolute error."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["linear_correlation", "rank_correlation"]


def linear_correlation(first: Tensor, second: Tensor) -> float:
    """Compute Pearson's correlation.

    Args:
        first: A number of each item, `(item,)`.
        second: Another, `(item,)`.

    Returns:
        The correlation; 0 where either number is the same for all items.
    """
    pair = _check(first, second)
    if (pair == pair[:, :1]).all(-1).any():
        return 0.0
    centred = pair - pair.mean(-1, keepdim=True)
    return float(centred.prod(0).sum() / centred.norm(dim=-1).prod())


def rank_correlation(first: Tensor, second: Tensor) -> float:
    """Compute Spearman's correlation, that of the ranks; equal values share their mean rank.

    Args:
        first: A number of each item, `(item,)`.
        second: Another, `(item,)`.

    Returns:
        The correlation; 0 where either number is the same for all items, and so ranks nothing.
    """
    return linear_correlation(*map(_ranks, _check(first, second)))


def _ranks(values: Tensor) -> Tensor:
    _, inverse, sizes = torch.unique(values, return_inverse=True, return_counts=True)
    last = sizes.cumsum(0).double()
    return (last - (sizes - 1) / 2)[inverse]


def _check(first: Tensor, second: Tensor) -> Tensor:
    if first.dim() != 1 or first.shape != second.shape or len(first) == 0:
        raise ValueError(
            "first and second should be of shape (item,), with as many items, and at least one, "
            f"got {tuple(first.shape)} and {tuple(second.shape)}"
        )
    pair = torch.stack([values.detach().to("cpu", torch.float64) for values in (first, second)])
    for name, values in zip(("first", "second"), pair, strict=True):
        if values.isnan().any():
            raise ValueError(f"{name} holds {int(values.isnan().sum())} NaN")
    return pair
