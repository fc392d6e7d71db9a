"""The small networks inside flows: Pyro's, able to run on stacked parameters in batched kernels."""

# Pyro and torch.distributions are untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from pyro.nn import AutoRegressiveNN, DenseNN
from pyro.nn.auto_reg_nn import MaskedLinear
from torch import Tensor, nn

__all__ = ["StackableAutoRegressiveNN", "StackableDenseNN", "last_layer", "linear", "zero_last_layer"]


class StackableAutoRegressiveNN(AutoRegressiveNN):
    """Pyro's masked autoregressive network, which also takes parameters with a leading dimension L.

    Args:
        dim: The number of inputs; their order is drawn at random.
        hidden_dims: The hidden sizes, none below `dim`.
        param_dims: The number of outputs per input, by parameter.

    References:
        | MADE: Masked Autoencoder for Distribution Estimation (Germain et al., 2015)
        | https://arxiv.org/abs/1502.03509
    """

    def __init__(self, dim: int, hidden_dims: Sequence[int], param_dims: Sequence[int] = (1, 1)) -> None:
        super().__init__(dim, list(hidden_dims), param_dims=list(param_dims))
        masked = [layer for layer in self.layers if isinstance(layer, MaskedLinear)]
        self.layers = nn.ModuleList(
            _StackableMaskedLinear(layer.in_features, layer.out_features, layer.mask) for layer in masked
        )


class StackableDenseNN(DenseNN):
    """Pyro's dense network, which also takes parameters with a leading dimension L.

    Args:
        dim: The number of inputs.
        hidden_dims: The hidden sizes.
        param_dims: The number of outputs, by parameter.
    """

    def __init__(self, dim: int, hidden_dims: Sequence[int], param_dims: Sequence[int]) -> None:
        super().__init__(dim, list(hidden_dims), param_dims=list(param_dims))
        sizes = [dim, *hidden_dims, sum(param_dims)]
        self.layers = nn.ModuleList(_StackableLinear(*pair) for pair in pairwise(sizes))


def last_layer(network: StackableAutoRegressiveNN | StackableDenseNN) -> nn.Linear:
    """Return the layer that makes the outputs."""
    return cast(nn.Linear, network.layers[-1])


def zero_last_layer(network: StackableAutoRegressiveNN | StackableDenseNN) -> None:
    """Make all outputs zero, whatever the input."""
    for parameter in last_layer(network).parameters():
        nn.init.zeros_(parameter)


class _StackableLinear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


class _StackableMaskedLinear(MaskedLinear):
    def forward(self, _input: Tensor) -> Tensor:
        return linear(_input, self.weight * self.mask, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Apply one layer `(out, in)` to x `(..., in)`, or a stack `(L, out, in)` to x `(..., L, rows, in)`."""
    return torch.matmul(x, weight.mT) + bias.unsqueeze(-2)
