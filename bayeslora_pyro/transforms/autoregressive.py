"""Autoregressive flows: each coordinate is mapped given those before it."""

# Pyro and torch.distributions are untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions.transforms as pyro_transforms
import torch
from pyro.distributions.torch_transform import TransformModule
from pyro.distributions.transforms.utils import clamp_preserve_gradients
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, softplus

from .composition import Inverse
from .networks import StackableAutoRegressiveNN, last_layer, zero_last_layer
from .traits import OneWay, Stackable

__all__ = [
    "AffineAutoregressive",
    "NeuralAutoregressive",
    "affine_autoregressive",
    "check_sizes",
    "inverse_autoregressive",
    "neural_autoregressive",
]


def affine_autoregressive(dim: int, hidden_dims: Sequence[int] | None = None) -> AffineAutoregressive:
    r"""Affine autoregressive flow, the fast way from base to latent (the paper's).

    .. math:: y_j = \exp(s_j(x_{<j})) \, x_j + m_j(x_{<j})

    The forward map is one parallel pass through a masked network; its inverse takes `dim` passes. The order
    of the coordinates is drawn at random.

    Args:
        dim: The number of dimensions, at least 2.
        hidden_dims: The hidden sizes of the network, none below `dim`; two of `max(16, dim)` by default.

    Returns:
        The flow, at the identity.

    Raises:
        ValueError: If `dim` or one of `hidden_dims` is too small.

    References:
        | Improved Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016)
        | https://arxiv.org/abs/1606.04934
    """
    network = StackableAutoRegressiveNN(dim, check_sizes("affine_autoregressive", dim, hidden_dims))
    zero_last_layer(network)
    return AffineAutoregressive(network)


def inverse_autoregressive(dim: int, hidden_dims: Sequence[int] | None = None) -> Inverse:
    r"""Affine autoregressive flow in the other direction, from latent to base in one pass.

    .. math:: y_j = (x_j - m_j(y_{<j})) \, \exp(-s_j(y_{<j}))

    Drawing takes `dim` passes through the network; the density of any given point takes one.

    Args:
        dim: The number of dimensions, at least 2.
        hidden_dims: The hidden sizes of the network, none below `dim`; two of `max(16, dim)` by default.

    Returns:
        The flow, at the identity.

    Raises:
        ValueError: If `dim` or one of `hidden_dims` is too small.

    References:
        | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017)
        | https://arxiv.org/abs/1705.07057
    """
    network = StackableAutoRegressiveNN(dim, check_sizes("inverse_autoregressive", dim, hidden_dims))
    zero_last_layer(network)
    return Inverse(AffineAutoregressive(network))


def neural_autoregressive(
    dim: int, hidden_dims: Sequence[int] | None = None, *, width: int = 4, spread: float = 0.1
) -> NeuralAutoregressive:
    r"""Neural autoregressive flow: each coordinate goes through a monotone mixture of `width` sigmoids.

    .. math:: y_j = \sigma^{-1}\Bigl( \sum_k w_k \, \sigma(a_k x_j + b_k) \Bigr), \qquad
        (a, w, b)(x_{<j}), \quad a_k > 0, \quad \sum_k w_k = 1

    It has no inverse in closed form: the density is known for its own draws only. It is the identity only
    where all sigmoids are one and the same, and from there they would never part. So it starts near the
    identity, with a = 1 and b spread evenly over `[-spread, spread]`: :math:`|y_j - x_j|` is at most
    `spread`, and the log-det at most `2 * spread * dim`.

    Args:
        dim: The number of dimensions, at least 2.
        hidden_dims: The hidden sizes of the network, none below `dim`; two of `max(16, dim)` by default.
        width: The number of sigmoids per coordinate.
        spread: How far apart the sigmoids start.

    Returns:
        The flow, near the identity.

    Raises:
        ValueError: If `dim` or one of `hidden_dims` is too small.

    References:
        | Neural Autoregressive Flows (Huang et al., 2018)
        | https://arxiv.org/abs/1804.00779
    """
    hidden_dims = check_sizes("neural_autoregressive", dim, hidden_dims)
    network = StackableAutoRegressiveNN(dim, hidden_dims, param_dims=(width, width, width))
    last = last_layer(network)
    slopes, shifts = slice(None, width * dim), slice(2 * width * dim, None)
    with torch.no_grad():
        last.weight[slopes] = 0.0
        last.weight[shifts] = 0.0
        last.bias[slopes] = math.log(math.expm1(1.0))  # softplus of it is 1
        last.bias[shifts] = torch.linspace(-spread, spread, width).repeat_interleave(dim)
    return NeuralAutoregressive(network)


def check_sizes(name: str, dim: int, hidden_dims: Sequence[int] | None) -> Sequence[int]:
    """Check the sizes of an autoregressive flow, and fill in the default."""
    if dim < 2:
        raise ValueError(
            f"dim of {name} must be at least 2, got {dim}: for single columns use 'planar' or 'sylvester'"
        )
    hidden_dims = (max(16, dim),) * 2 if hidden_dims is None else hidden_dims
    if not hidden_dims or min(hidden_dims) < dim:
        raise ValueError(
            f"hidden_dims of {name} must hold at least one size and none below dim = {dim}, got {hidden_dims}"
        )
    return hidden_dims


class AffineAutoregressive(Stackable, pyro_transforms.AffineAutoregressive):
    """Pyro's affine autoregressive flow, whose inverse also runs stacked, vmapped, in any precision.

    Args:
        network: The network that gives the shift and the log-scale.
    """

    def __init__(self, network: StackableAutoRegressiveNN) -> None:
        super().__init__(network)

    def _inverse(self, y: Tensor) -> Tensor:
        # Each copy in a stack has its own order, so the order is data here and no list of indices.
        order = self.arn.permutation.argsort(-1).unsqueeze(-2)
        x, log_scale = torch.zeros_like(y), torch.zeros_like(y)
        for step in range(y.shape[-1]):
            mean, log_scale = self.arn(x)
            log_scale = clamp_preserve_gradients(log_scale, self.log_scale_min_clip, self.log_scale_max_clip)
            x = torch.where(order == step, (y - mean) * torch.exp(-log_scale), x).reshape(y.shape)
        self._cached_log_scale = log_scale
        return x


class NeuralAutoregressive(Stackable, OneWay, TransformModule):
    r"""A monotone mixture of sigmoids per coordinate, in logarithms.

    .. math:: y = \log D - \log (1 - D), \qquad \log D = \log \sum_k \exp(\log w_k + \log \sigma(z_k)),
        \qquad z_k = a_k x + b_k

    and 1 - D likewise with -z. Pyro computes D itself, which in single precision is 1 from x = 17 on, and
    scores the last point it mapped, whichever it is asked for.

    Args:
        network: The network that gives slopes, mixture weights and shifts.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    _cached_ladj: Tensor

    def __init__(self, network: StackableAutoRegressiveNN) -> None:
        super().__init__(cache_size=1)
        self.arn = network

    def _call(self, x: Tensor) -> Tensor:
        raw_slopes, logits, shifts = self.arn(x)  # each (..., width, dim)
        slopes = softplus(raw_slopes).clamp_min(torch.finfo(x.dtype).tiny)
        log_weights = logits.log_softmax(-2)
        z = slopes * x.unsqueeze(-2) + shifts
        log_up, log_down = logsigmoid(z), logsigmoid(-z)
        log_mix = torch.logsumexp(log_weights + log_up, -2)
        log_rest = torch.logsumexp(log_weights + log_down, -2)
        log_slope = torch.logsumexp(log_weights + slopes.log() + log_up + log_down, -2)
        self._cached_ladj = (log_slope - log_mix - log_rest).sum(-1)
        return log_mix - log_rest

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-abs-det-Jacobian at x."""
        self(x)  # free where x is the last value seen
        return self._cached_ladj
