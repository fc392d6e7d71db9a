"""Sum-of-squares polynomial flows."""

# Pyro and torch.distributions are untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from .autoregressive import check_sizes
from .networks import StackableAutoRegressiveNN, last_layer, zero_last_layer
from .traits import OneWay, Stackable

__all__ = ["Polynomial", "polynomial"]


def polynomial(
    dim: int,
    hidden_dims: Sequence[int] | None = None,
    *,
    degree: int = 2,
    num_squares: int = 2,
    spread: float = 0.01,
) -> Polynomial:
    r"""Sum-of-squares polynomial flow: each coordinate goes through a monotone polynomial.

    .. math:: y_j = c_j + \int_0^{x_j} \Bigl( \epsilon + \sum_k \bigl(\textstyle\sum_d a_{kd} t^d\bigr)^2 \Bigr)
        \, dt, \qquad a(x_{<j})

    There is no inverse in closed form: the density is known for its own draws only. It is the identity only
    where all squares are one and the same, and from there they would never part. So it starts near the
    identity, with :math:`a_{kd} = \pm` `spread` for d > 0, of signs for which the first order of `spread`
    cancels.

    Args:
        dim: The number of dimensions, at least 2.
        hidden_dims: The hidden sizes of the network, none below `dim`; two of `max(16, dim)` by default.
        degree: The degree of each polynomial that is squared.
        num_squares: The number of squares, even.
        spread: How far apart the squares start.

    Returns:
        The flow, near the identity.

    Raises:
        ValueError: If a size is too small, or `num_squares` odd.

    References:
        | Sum-of-Squares Polynomial Flow (Jaini et al., 2019)
        | https://arxiv.org/abs/1905.02325
    """
    hidden_dims = check_sizes("polynomial", dim, hidden_dims)
    if degree < 1:
        raise ValueError(f"degree of polynomial must be at least 1, got {degree}: for less, 'batch_norm'")
    if num_squares < 2 or num_squares % 2:
        raise ValueError(f"num_squares of polynomial must be even and at least 2, got {num_squares}")
    network = StackableAutoRegressiveNN(dim, hidden_dims, param_dims=(num_squares * (degree + 1),))
    zero_last_layer(network)
    coefficients = torch.full((num_squares, degree + 1), spread)
    coefficients[1::2] *= -1.0
    coefficients[:, 0] = math.sqrt((1.0 - Polynomial.min_slope) / num_squares)
    with torch.no_grad():
        last_layer(network).bias.copy_(coefficients.flatten().repeat_interleave(dim))
    return Polynomial(network, dim, num_squares)


class Polynomial(Stackable, OneWay, TransformModule):
    """A monotone polynomial per coordinate, with the log-det of its map.

    Pyro adds 1e-8 to the slope in the log-det alone; here the least slope is part of the map.

    Args:
        network: The network that gives the coefficients.
        dim: The number of dimensions.
        num_squares: The number of squares.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    min_slope = 1e-3
    _cached_ladj: Tensor

    def __init__(self, network: StackableAutoRegressiveNN, dim: int, num_squares: int) -> None:
        super().__init__(cache_size=1)
        self.arn = network
        self.num_squares = num_squares
        self.c = nn.Parameter(torch.zeros(dim))

    def _call(self, x: Tensor) -> Tensor:
        outputs = cast(Tensor, self.arn(x))  # (..., num_squares * (degree + 1), dim)
        coefficients = outputs.unflatten(-2, (self.num_squares, -1)).unbind(-2)
        squared = [torch.zeros_like(x)] * (2 * len(coefficients) - 1)
        for m, first in enumerate(coefficients):
            for n, second in enumerate(coefficients):
                squared[m + n] = squared[m + n] + (first * second).sum(-2)
        slope, y = torch.zeros_like(x), torch.zeros_like(x)
        for power, coefficient in reversed(list(enumerate(squared))):
            slope = slope * x + coefficient
            y = y * x + coefficient / (power + 1)
        self._cached_ladj = (slope + self.min_slope).log().sum(-1)
        return (y * x + self.min_slope * x + self.c.unsqueeze(-2)).reshape(x.shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-abs-det-Jacobian at x."""
        self(x)  # free where x is the last value seen
        return self._cached_ladj
