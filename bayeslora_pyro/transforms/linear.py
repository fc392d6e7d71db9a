"""Linear flows: rotations, any linear map of positive determinant, scales and shifts, reorderings."""

# Pyro and torch.distributions are untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from .composition import Permutation
from .reflections import normals_of, reflect
from .traits import Stackable

__all__ = [
    "BatchNorm",
    "Householder",
    "MatrixExponential",
    "batch_norm",
    "householder",
    "matrix_exponential",
    "permute",
]


def householder(dim: int, num_pairs: int | None = None) -> Householder:
    r"""Householder flow, a learned rotation as a product of reflections.

    .. math:: y = H_n \cdots H_1 x, \qquad H_k = I - 2 u_k u_k^T / \|u_k\|^2

    It keeps volumes: alone, it only turns the base distribution. The reflections come in pairs, which start
    out equal and so undo each other; a single one would be no start.

    Args:
        dim: The number of dimensions, at least 2.
        num_pairs: The number of pairs; `(dim + 1) // 2` by default, enough for any rotation.

    Returns:
        The flow, at the identity.

    Raises:
        ValueError: If `dim` is less than 2 or `num_pairs` less than 1.

    References:
        | Improving Variational Auto-Encoders using Householder Flow (Tomczak & Welling, 2016)
        | https://arxiv.org/abs/1611.09630
    """
    if dim < 2:
        raise ValueError(f"dim of householder must be at least 2, got {dim}: for single columns use 'planar'")
    num_pairs = (dim + 1) // 2 if num_pairs is None else num_pairs
    if num_pairs < 1:
        raise ValueError(f"num_pairs of householder must be at least 1, got {num_pairs}")
    return Householder(torch.randn(num_pairs, dim).repeat_interleave(2, dim=0))


def matrix_exponential(dim: int) -> MatrixExponential:
    r"""Matrix exponential flow, any linear map that the identity can be moved to.

    .. math:: y = \exp(M) \, x, \qquad \log |\det J| = \operatorname{tr} M

    Args:
        dim: The number of dimensions.

    Returns:
        The flow, at the identity: M = 0.

    References:
        | The Convolution Exponential and Generalized Sylvester Flows (Hoogeboom et al., 2020)
        | https://arxiv.org/abs/2006.01910
    """
    return MatrixExponential(torch.zeros(dim, dim))


def batch_norm(dim: int) -> BatchNorm:
    r"""Batch normalisation with learned statistics: each coordinate is scaled and shifted.

    .. math:: y_j = \exp(s_j) \, x_j + m_j

    Put between other flows, it sets the scale at which they work. The statistics are parameters, because
    those of the draws at hand would make draws depend on each other: they have no density each, and Pyro's
    `BatchNorm` in training mode scores another map than the one it draws with.

    Args:
        dim: The number of dimensions.

    Returns:
        The flow, at the identity.

    References:
        | Density Estimation using Real NVP (Dinh et al., 2017), Section 3.7
        | https://arxiv.org/abs/1605.08803
        | Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma & Dhariwal, 2018), Section 3.1
        | https://arxiv.org/abs/1807.03039
    """
    return BatchNorm(dim)


def permute(dim: int) -> Permutation:
    r"""A fixed random reordering, :math:`y_j = x_{\pi(j)}`, without parameters.

    It belongs between other flows, as in `"affine_coupling+permute+affine_coupling"`; where it stands last,
    the flow does not start at the identity.

    Args:
        dim: The number of dimensions.

    Returns:
        The reordering.
    """
    return Permutation(torch.randperm(dim))


class Householder(Stackable, TransformModule):
    """A product of reflections.

    Args:
        u_unnormed: Their normal vectors, of any length, `(n, dim)`.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    volume_preserving = True

    def __init__(self, u_unnormed: Tensor) -> None:
        super().__init__(cache_size=1)
        self.u_unnormed = nn.Parameter(u_unnormed)

    def _call(self, x: Tensor) -> Tensor:
        return reflect(x, normals_of(self.u_unnormed)).reshape(x.shape)

    def _inverse(self, y: Tensor) -> Tensor:
        return reflect(y, normals_of(self.u_unnormed)[::-1]).reshape(y.shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero: a reflection keeps volumes."""
        return x.new_zeros(x.shape[:-1])


class MatrixExponential(Stackable, TransformModule):
    """A linear map by its logarithm.

    Pyro cuts the series of the exponential after eight terms, and neither its log-det nor its inverse is then
    that of its map; this one is exact.

    Args:
        weights: The logarithm M, `(dim, dim)`.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, weights: Tensor) -> None:
        super().__init__(cache_size=1)
        self.weights = nn.Parameter(weights)

    def _call(self, x: Tensor) -> Tensor:
        return torch.matmul(x, torch.linalg.matrix_exp(self.weights.mT))

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.matmul(y, torch.linalg.matrix_exp(-self.weights.mT))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The trace of M, for each row."""
        trace = self.weights.diagonal(dim1=-2, dim2=-1).sum(-1)
        return (trace.unsqueeze(-1) if trace.dim() else trace).expand(x.shape[:-1])


class BatchNorm(Stackable, TransformModule):
    """A scale and a shift of each coordinate.

    Args:
        dim: The number of dimensions.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, dim: int) -> None:
        super().__init__(cache_size=1)
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.shift = nn.Parameter(torch.zeros(dim))

    def _call(self, x: Tensor) -> Tensor:
        return (x * self.log_scale.exp().unsqueeze(-2) + self.shift.unsqueeze(-2)).reshape(x.shape)

    def _inverse(self, y: Tensor) -> Tensor:
        return ((y - self.shift.unsqueeze(-2)) * (-self.log_scale).exp().unsqueeze(-2)).reshape(y.shape)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of the log-scales, for each row."""
        total = self.log_scale.sum(-1)
        return (total.unsqueeze(-1) if total.dim() else total).expand(x.shape[:-1])
