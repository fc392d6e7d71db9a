"""Block neural autoregressive flows: the network is the flow."""

# Pyro and torch.distributions are untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from .networks import linear
from .traits import OneWay, Stackable

__all__ = ["BlockAutoregressive", "block_autoregressive"]


def block_autoregressive(dim: int, hidden_factors: Sequence[int] = (4, 4)) -> BlockAutoregressive:
    r"""Block neural autoregressive flow: one network, monotone in each coordinate given those before it.

    .. math:: h^{0} = x, \qquad h^{l} = \phi(W^l h^{l-1} + b^l), \qquad y = W^n h^{n-1} + b^n, \qquad
        \phi(t) = t + \tanh(a) \tanh(t)

    The weights are in blocks, one per pair of coordinates: positive on the diagonal, free where the one
    coordinate comes before the other, else zero. The paper's activation is tanh; a learned share of it lets
    the flow start at the identity. The order of the coordinates is drawn at random. There is no inverse in
    closed form: the density is known for its own draws only.

    Args:
        dim: The number of dimensions, at least 2.
        hidden_factors: The hidden sizes per coordinate.

    Returns:
        The flow, at the identity.

    Raises:
        ValueError: If `dim` or one of `hidden_factors` is too small.

    References:
        | Block Neural Autoregressive Flow (De Cao et al., 2019)
        | https://arxiv.org/abs/1904.04676
    """
    if dim < 2:
        raise ValueError(
            f"dim of block_autoregressive must be at least 2, got {dim}: "
            "for single columns use 'planar' or 'sylvester'"
        )
    if not hidden_factors or min(hidden_factors) < 1:
        raise ValueError(
            f"hidden_factors of block_autoregressive must hold at least one size and none below 1, "
            f"got {hidden_factors}"
        )
    return BlockAutoregressive(torch.randperm(dim), hidden_factors)


class BlockAutoregressive(Stackable, OneWay, TransformModule):
    r"""A monotone network with the log-det of its map.

    The slope of y_j in x_j is a product of positive blocks,
    :math:`B^n_{jj} \operatorname{diag}(\phi') B^{n-1}_{jj} \cdots B^1_{jj}`; no part of it can cancel.

    Args:
        ranks: The place of each coordinate in the order, `(dim,)`.
        hidden_factors: The hidden sizes per coordinate.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    _cached_ladj: Tensor

    def __init__(self, ranks: Tensor, hidden_factors: Sequence[int]) -> None:
        super().__init__(cache_size=1)
        self.layers = nn.ModuleList(_BlockLinear(ranks, *pair) for pair in pairwise([1, *hidden_factors, 1]))
        self.raw_shares = nn.ParameterList(torch.zeros(size * len(ranks)) for size in hidden_factors)
        with torch.no_grad():  # what the hidden biases add, the last one takes away
            cast(_BlockLinear, self.layers[-1]).bias.sub_(self._call(torch.zeros(len(ranks))))

    def _call(self, x: Tensor) -> Tensor:
        first, *others = cast(list[_BlockLinear], list(self.layers))
        values, slopes = first(x, torch.ones_like(x))
        for raw_share, layer in zip(self.raw_shares, others, strict=True):
            share, bend = torch.tanh(raw_share).unsqueeze(-2), torch.tanh(values)
            values, slopes = layer(values + share * bend, slopes * (1.0 + share * (1.0 - bend.square())))
        self._cached_ladj = slopes.log().sum(-1).reshape(x.shape[:-1])
        return values.reshape(x.shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-abs-det-Jacobian at x."""
        self(x)  # free where x is the last value seen
        return self._cached_ladj


class _BlockLinear(nn.Module):
    """A layer of blocks `(size_out, size_in)`, one per pair of coordinates."""

    diagonal: Tensor
    before: Tensor

    def __init__(self, ranks: Tensor, size_in: int, size_out: int) -> None:
        super().__init__()
        dim = len(ranks)
        block = torch.ones(size_out, size_in)
        eye = torch.eye(dim)
        self.register_buffer("diagonal", torch.kron(eye, block))
        self.register_buffer("before", torch.kron((ranks[:, None] > ranks).to(eye), block))
        # Rows of positive weights that add up to one keep the slope at one.
        positive = torch.randn(dim * size_out, size_in).log_softmax(-1)
        self.weight = nn.Parameter(positive.repeat(1, dim) * self.diagonal)
        self.bias = nn.Parameter(torch.empty(dim * size_out).uniform_(-2.0, 2.0))

    def forward(self, values: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Map values, `(..., dim * size_in)`, and their slopes in their own coordinate."""
        positive = self.weight.exp() * self.diagonal
        mapped = linear(values, positive + self.weight * self.before, self.bias)
        return mapped, torch.matmul(slopes, positive.mT)
