"""The Gaussian matrix whose precision is a Kronecker product plus a multiple of the identity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, Normal, constraints, register_kl
from torch.distributions.utils import _standard_normal

__all__ = ["KroneckerNormal"]

NAMES = ("loc", "precision", "row_vectors", "row_values", "col_vectors", "col_values")


class KroneckerNormal(TorchDistribution):
    r"""A Gaussian matrix whose precision is a Kronecker product, of full or of low rank, plus :math:`\lambda I`.

    .. math::
        \mathrm{vec}\, W \sim \mathcal{N}\big(\mathrm{vec}\, M,\;
        (Q_r \mathrm{diag}(u) Q_r^\top \otimes Q_c \mathrm{diag}(v) Q_c^\top + \lambda I)^{-1}\big)

    where vec puts the rows one after the other. The columns of :math:`Q_r` and :math:`Q_c` are orthonormal
    eigenvectors, of which there may be fewer than rows and columns; in all other directions the precision is
    :math:`\lambda`.

    Args:
        loc: The mean :math:`M`. Shape `(..., m, n)`.
        precision: The multiple of the identity, :math:`\lambda > 0`. Shape `(...)`.
        row_vectors: The eigenvectors :math:`Q_r`. Shape `(..., m, p)`.
        row_values: The eigenvalues :math:`u \ge 0`. Shape `(..., p)`.
        col_vectors: The eigenvectors :math:`Q_c`. Shape `(..., n, q)`.
        col_values: The eigenvalues :math:`v \ge 0`. Shape `(..., q)`.

    Raises:
        ValueError: If the shapes do not fit, or `precision` or the eigenvalues are negative.

    References:
        | Laplace Redux -- Effortless Bayesian Deep Learning (Daxberger et al., 2021), Appendix B
        | https://arxiv.org/abs/2106.14806
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {  # pyright: ignore
        "loc": constraints.independent(constraints.real, 2),
        "precision": constraints.positive,
        "row_values": constraints.independent(constraints.nonnegative, 1),
        "col_values": constraints.independent(constraints.nonnegative, 1),
    }
    support = constraints.independent(constraints.real, 2)  # pyright: ignore
    has_rsample = True

    def __init__(
        self,
        loc: Tensor,
        precision: Tensor,
        row_vectors: Tensor,
        row_values: Tensor,
        col_vectors: Tensor,
        col_values: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        sides = (("row", row_vectors, row_values, -2), ("col", col_vectors, col_values, -1))
        for side, vectors, values, dim in sides:
            wanted = (loc.shape[dim], values.shape[-1])
            if vectors.shape[-2:] != wanted:
                raise ValueError(
                    f"{side}_vectors has shape {tuple(vectors.shape)}, and its last dimensions should be {wanted}: "
                    f"one column for each of {side}_values, of the size of loc."
                )
        self.loc, self.precision = loc, precision
        self.row_vectors, self.row_values = row_vectors, row_values
        self.col_vectors, self.col_values = col_vectors, col_values
        batch_shape = torch.broadcast_shapes(loc.shape[:-2], precision.shape, row_values.shape[:-1])
        super().__init__(batch_shape, loc.shape[-2:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: KroneckerNormal | None = None) -> KroneckerNormal:
        """Broadcasts the batch shape; the parameters stay as they are and broadcast when used."""
        new: KroneckerNormal = self._get_checked_instance(KroneckerNormal, _instance)  # type: ignore[no-untyped-call]
        for name in NAMES:
            setattr(new, name, getattr(self, name))
        super(KroneckerNormal, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def curvature(self) -> Tensor:
        r"""The eigenvalues that are not zero, :math:`u_i v_j`. Shape `(..., p, q)`."""
        return self.row_values[..., :, None] * self.col_values[..., None, :]

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws matrices, by the symmetric root of the covariance. Shape `(*sample_shape, *batch_shape, m, n)`."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        white = _standard_normal(shape, self.loc.dtype, self.loc.device)
        precision = self.precision[..., None, None]
        within = (precision + self.curvature).rsqrt() - precision.rsqrt()
        return self.loc + precision.rsqrt() * white + self._back(within * self._into(white))

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Computes the exact log-density.

        .. math::
            \log p = -\tfrac12 \Big(\lambda \|X\|^2 + \sum_{ij} u_i v_j (Q_r^\top X Q_c)_{ij}^2\Big)
            + \tfrac12 \log\det P - \tfrac12 m n \log 2\pi, \qquad X = W - M

        Args:
            value: The matrices. Shape `(..., m, n)`.
        """
        if self._validate_args:
            self._validate_sample(value)
        residual = value - self.loc
        quadratic = self.precision * residual.square().sum((-2, -1))
        quadratic = quadratic + (self.curvature * self._into(residual).square()).sum((-2, -1))
        return 0.5 * (self.log_det_precision - quadratic - self.event_shape.numel() * math.log(2 * math.pi))

    @property
    def log_det_precision(self) -> Tensor:
        r"""The log-determinant of the precision, :math:`m n \log\lambda + \sum_{ij} \log(1 + u_i v_j / \lambda)`."""
        within = (self.curvature / self.precision[..., None, None]).log1p().sum((-2, -1))
        return self.event_shape.numel() * self.precision.log() + within

    @property
    def mean(self) -> Tensor:
        """The mean. Shape `(*batch_shape, m, n)`."""
        return self.loc.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        r"""The variance of each entry.

        .. math::
            \mathrm{Var}\, W_{ab} = \frac{1}{\lambda}
            - \sum_{ij} \Big(\frac{1}{\lambda} - \frac{1}{\lambda + u_i v_j}\Big) (Q_r)_{ai}^2 (Q_c)_{bj}^2
        """
        precision = self.precision[..., None, None]
        gain = precision.reciprocal() - (precision + self.curvature).reciprocal()
        known = self.row_vectors.square() @ gain @ self.col_vectors.square().mT
        return (precision.reciprocal() - known).expand(self.batch_shape + self.event_shape)

    def _into(self, matrix: Tensor) -> Tensor:
        r"""The coordinates :math:`Q_r^\top X Q_c`. Shape `(..., p, q)`."""
        return self.row_vectors.mT @ matrix @ self.col_vectors

    def _back(self, coordinates: Tensor) -> Tensor:
        r"""The matrix :math:`Q_r Y Q_c^\top`. Shape `(..., m, n)`."""
        return self.row_vectors @ coordinates @ self.col_vectors.mT


@register_kl(KroneckerNormal, Independent)  # type: ignore[untyped-decorator]
def _kl_kronecker_normal_independent(q: KroneckerNormal, p: Independent[Any]) -> Tensor:
    r"""Computes the divergence to independent normal entries.

    .. math::
        \tfrac12 \sum_{ij} \frac{\mathrm{Var}_q W_{ij} + (M_q - M_p)_{ij}^2}{s_{ij}^2} - \tfrac12 m n
        + \sum_{ij} \log s_{ij} + \tfrac12 \log\det P
    """
    normal = p.base_dist
    if not isinstance(normal, Normal) or p.reinterpreted_batch_ndims != 2:
        raise NotImplementedError("The entries are not independent normals.")
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"q has event shape {tuple(q.event_shape)} and p {tuple(p.event_shape)}: a divergence needs one and the "
            "same."
        )
    spread = ((q.variance + (q.loc - normal.loc).square()) / normal.scale.square()).sum((-2, -1))
    scales = normal.scale.log().expand(p.batch_shape + p.event_shape).sum((-2, -1))
    kl = 0.5 * (spread - q.event_shape.numel() + q.log_det_precision) + scales
    return kl.expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))
