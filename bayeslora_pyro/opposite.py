"""Draws in opposite pairs: what one draw has too much of, the next has too little of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from bayeslora_pyro.distributions import InducedNormal
from bayeslora_pyro.isolation import local_rng
from bayeslora_pyro.kronecker_normal import KroneckerNormal
from bayeslora_pyro.matrix_normal import MatrixNormal
from bayeslora_pyro.vec_normal import VecNormal

__all__ = ["Opposite", "drawing", "is_symmetric", "opposite_pairs"]

SYMMETRIC = (
    Normal,
    MultivariateNormal,
    LowRankMultivariateNormal,
    InducedNormal,
    KroneckerNormal,
    MatrixNormal,
    VecNormal,
)
"""The distributions for which the reflection of a draw about the mean is a draw too."""


@contextmanager
def drawing(seed: int, draw: int) -> Iterator[None]:
    r"""Has what is drawn be draw `s` under a seed; every second draw is the opposite of the one before.

    .. math:: W_{2k} = M + C \epsilon_k, \qquad W_{2k+1} = M - C \epsilon_k

    Each is a draw from the distribution itself. In the average of a pair the error of whatever is odd in the noise is
    gone, so that fewer draws do. Through a flow, the noise before it is reflected.

    Args:
        seed: The seed.
        draw: The index of the draw, s.

    References:
        | A New Monte Carlo Technique: Antithetic Variates (Hammersley and Morton, 1956)
        | https://doi.org/10.1017/S0305004100031455
    """
    with local_rng(seed, "draw", draw - draw % 2), Opposite(seed, draw) if draw % 2 else nullcontext():
        yield


class Opposite(Messenger):
    """Has a program draw, with the same noise, the opposite at each site; where there is none, something independent.

    Args:
        key: What the independent draws are a function of, beside the name of the site.
    """

    def __init__(self, *key: int | str) -> None:
        super().__init__()
        self._key = key

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or type(msg["fn"]).__name__ == "_Subsample":
            return
        if is_symmetric(msg["fn"]):
            value = _opposite(msg["fn"])
        else:
            msg["fn"]()  # so that later sites meet the noise that they met before
            with local_rng(*self._key, msg["name"]):
                value = msg["fn"]()
        msg["value"], msg["done"] = value, True


def is_symmetric(distribution: Any) -> bool:
    """Whether a draw has an opposite."""
    if isinstance(distribution, Independent | TransformedDistribution):
        return is_symmetric(distribution.base_dist)
    return isinstance(distribution, SYMMETRIC)


def _opposite(distribution: Any) -> Tensor:
    """Draws as the distribution does, and reflects what was drawn before any transform."""
    if isinstance(distribution, Independent):
        return _opposite(distribution.base_dist)
    if isinstance(distribution, TransformedDistribution):
        value: Any = _opposite(distribution.base_dist)
        for transform in distribution.transforms:
            value = transform(value)
        return cast(Tensor, value)
    reflected: Tensor = 2 * distribution.mean - distribution.rsample()
    return reflected


def opposite_pairs(distribution: Any, num_pairs: int) -> Tensor:
    """Draws, and behind them the opposite of each; without opposites, as many further draws. Shape `(2 num_pairs, …)`.

    Args:
        distribution: The distribution.
        num_pairs: The number of pairs.
    """
    if isinstance(distribution, Independent):
        return opposite_pairs(distribution.base_dist, num_pairs)
    if isinstance(distribution, TransformedDistribution):
        values: Any = opposite_pairs(distribution.base_dist, num_pairs)
        for transform in distribution.transforms:
            values = transform(values)
        return cast(Tensor, values)
    first: Tensor = distribution.rsample((num_pairs,))
    second = (
        2 * distribution.mean - first if is_symmetric(distribution) else distribution.rsample((num_pairs,))
    )
    return torch.cat([first, second])
