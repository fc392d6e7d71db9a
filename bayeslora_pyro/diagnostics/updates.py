"""The updates BA of the adapters: how large they are, and of what rank in effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from bayeslora_pyro.diagnostics.observations import as_float64
from bayeslora_pyro.types import FactorStack

__all__ = ["rank_of", "singular_values", "update_figures"]


def update_figures(draws: Mapping[str, Tensor], stacks: Sequence[FactorStack]) -> dict[str, NDArray[Any]]:
    r"""Compute the size and the effective rank of each adapter's update, which no rotation of its factors changes.

    Args:
        draws: The weights by stack name, each `(draw, adapter, rows, cols)`.
        stacks: The factor stacks.

    Returns:
        ``update_norm``, the Frobenius norm :math:`\|BA\|`, and ``update_rank``, see :func:`rank_of`, each
        `(draw, adapter)`, adapters in the order of their first appearance in the stacks; nothing if a factor of
        any adapter is missing.
    """
    grams: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for stack in stacks:
        weights = draws.get(stack.name)
        if weights is None:
            return {}
        weights = weights.detach().double()
        gram = weights @ weights.mT if stack.role == "A" else weights.mT @ weights
        grams[stack.role] |= dict(zip(stack.adapters, gram.unbind(1), strict=True))
    if not grams["A"] or grams["A"].keys() != grams["B"].keys():
        return {}
    modules = dict.fromkeys(module for stack in stacks for module in stack.adapters)
    values = [singular_values(grams["B"][module], grams["A"][module]) for module in modules]
    return {
        "update_norm": as_float64(torch.stack([each.norm(dim=-1) for each in values], dim=-1)),
        "update_rank": as_float64(torch.stack([rank_of(each) for each in values], dim=-1)),
    }


def singular_values(gram_b: Tensor, gram_a: Tensor) -> Tensor:
    r"""Compute the singular values of :math:`BA` from :math:`G_B = B^\top B` and :math:`G_A = A A^\top` alone.

    With :math:`G_A = S S^\top`, the squares are the eigenvalues of :math:`S^\top G_B S`.

    Args:
        gram_b: The matrices :math:`G_B`, `(..., r, r)`.
        gram_a: The matrices :math:`G_A`, `(..., r, r)`.

    Returns:
        The largest `r` singular values, `(..., r)`.
    """
    squares, axes = torch.linalg.eigh(gram_a)
    root = axes * squares.clamp(min=0).sqrt().unsqueeze(-2)
    return torch.linalg.eigvalsh(root.mT @ gram_b @ root).clamp(min=0).sqrt()


def rank_of(values: Tensor) -> Tensor:
    r"""Compute the effective rank, the exponential of the entropy of the singular values; 0 of a zero matrix.

    .. math:: \exp\Big(-\sum_i p_i \log p_i\Big), \qquad p_i = \sigma_i / \sum_j \sigma_j

    Args:
        values: The singular values, `(..., r)`.

    References:
        | The Effective Rank: A Measure of Effective Dimensionality (Roy and Vetterli, 2007)
        | https://infoscience.epfl.ch/record/110188
    """
    total = values.sum(-1, keepdim=True)
    shares = values / total.clamp(min=torch.finfo(values.dtype).tiny)
    rank = -torch.special.xlogy(shares, shares).sum(-1)
    return torch.where(total.squeeze(-1) > 0, rank.exp(), torch.zeros_like(rank))
