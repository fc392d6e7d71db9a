"""The matrix normal distribution: a Gaussian matrix whose covariance is a Kronecker product."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Independent, Normal, constraints, register_kl
from torch.distributions.utils import _standard_normal

__all__ = ["MatrixNormal"]


class MatrixNormal(TorchDistribution):
    r"""The distribution of a matrix whose rows and whose columns are correlated.

    .. math::
        W = M + L_r E L_c^\top, \quad E_{ij} \sim \mathcal{N}(0, 1), \qquad
        \mathrm{vec}\, W \sim \mathcal{N}(\mathrm{vec}\, M,\; L_r L_r^\top \otimes L_c L_c^\top)

    where vec puts the rows one after the other.

    Args:
        loc: The mean :math:`M`. Shape `(..., m, n)`.
        row_tril: The Cholesky factor :math:`L_r` of the covariance of the rows. Shape `(..., m, m)`.
        col_tril: The Cholesky factor :math:`L_c` of the covariance of the columns. Shape `(..., n, n)`.

    Raises:
        ValueError: If the shapes do not fit, or a factor is not lower triangular with a positive diagonal.

    References:
        | Structured and Efficient Variational Deep Learning with Matrix Gaussian Posteriors (Louizos and Welling, 2016)
        | https://arxiv.org/abs/1603.04733
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {  # pyright: ignore
        "loc": constraints.independent(constraints.real, 2),
        "row_tril": constraints.lower_cholesky,
        "col_tril": constraints.lower_cholesky,
    }
    support = constraints.independent(constraints.real, 2)  # pyright: ignore
    has_rsample = True

    def __init__(
        self, loc: Tensor, row_tril: Tensor, col_tril: Tensor, validate_args: bool | None = None
    ) -> None:
        rows, cols = loc.shape[-2:]
        for name, factor, size in (("row_tril", row_tril, rows), ("col_tril", col_tril, cols)):
            if factor.shape[-2:] != (size, size):
                raise ValueError(
                    f"{name} has shape {tuple(factor.shape)}, but loc is a matrix of {rows} rows and {cols} columns: "
                    f"the last two dimensions of {name} should be ({size}, {size})."
                )
        self.loc, self.row_tril, self.col_tril = loc, row_tril, col_tril
        batch_shape = torch.broadcast_shapes(loc.shape[:-2], row_tril.shape[:-2], col_tril.shape[:-2])
        super().__init__(batch_shape, loc.shape[-2:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: MatrixNormal | None = None) -> MatrixNormal:
        """Broadcasts the batch shape; the parameters stay as they are and broadcast when used."""
        new: MatrixNormal = self._get_checked_instance(MatrixNormal, _instance)  # type: ignore[no-untyped-call]
        for name in ("loc", "row_tril", "col_tril"):
            setattr(new, name, getattr(self, name))
        super(MatrixNormal, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws matrices. Shape `(*sample_shape, *batch_shape, m, n)`."""
        shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
        white = _standard_normal(shape, self.loc.dtype, self.loc.device)
        return self.loc + self.row_tril @ white @ self.col_tril.mT

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Computes the exact log-density.

        .. math::
            \log p = -\tfrac12 \|L_r^{-1} (W - M) L_c^{-\top}\|^2 - n \log\det L_r - m \log\det L_c
            - \tfrac12 m n \log 2\pi

        Args:
            value: The matrices. Shape `(..., m, n)`.
        """
        if self._validate_args:
            self._validate_sample(value)
        quadratic = self.whiten(value - self.loc).square().sum((-2, -1))
        return -0.5 * (quadratic + self.event_shape.numel() * math.log(2 * math.pi)) - self.half_log_det

    def whiten(self, residual: Tensor) -> Tensor:
        r"""Computes :math:`L_r^{-1} X L_c^{-\top}`, the white noise behind a residual :math:`X`, `(..., m, n)`."""
        halfway = torch.linalg.solve_triangular(self.row_tril, residual, upper=False)
        return torch.linalg.solve_triangular(self.col_tril.mT, halfway, upper=True, left=False)

    @property
    def half_log_det(self) -> Tensor:
        r"""Half the log-determinant of the covariance, :math:`n \log\det L_r + m \log\det L_c`. Shape `(...)`."""
        rows, cols = self.event_shape
        log_det_row, log_det_col = (
            factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) for factor in (self.row_tril, self.col_tril)
        )
        return cols * log_det_row + rows * log_det_col

    @property
    def mean(self) -> Tensor:
        """The mean. Shape `(*batch_shape, m, n)`."""
        return self.loc.expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> Tensor:
        r"""The variance of each entry, :math:`(L_r L_r^\top)_{ii} (L_c L_c^\top)_{jj}`."""
        rows, cols = (factor.square().sum(-1) for factor in (self.row_tril, self.col_tril))
        return (rows[..., :, None] * cols[..., None, :]).expand(self.batch_shape + self.event_shape)


@register_kl(MatrixNormal, MatrixNormal)  # type: ignore[untyped-decorator]
def _kl_matrix_normal(q: MatrixNormal, p: MatrixNormal) -> Tensor:
    r"""Computes the divergence between two matrix normals.

    .. math::
        \tfrac12 \big(\|L_{p,r}^{-1} L_{q,r}\|^2 \|L_{p,c}^{-1} L_{q,c}\|^2
        + \|L_{p,r}^{-1} (M_q - M_p) L_{p,c}^{-\top}\|^2 - m n\big)
        + \log\det L_p - \log\det L_q, \qquad \log\det L = n \log\det L_r + m \log\det L_c
    """
    _check_events(q, p)
    ratios = ((p.row_tril, q.row_tril), (p.col_tril, q.col_tril))
    row_trace, col_trace = (
        torch.linalg.solve_triangular(ours, theirs, upper=False).square().sum((-2, -1))
        for ours, theirs in ratios
    )
    distance = p.whiten(q.loc - p.loc).square().sum((-2, -1))
    return _kl(q, p, row_trace * col_trace + distance, p.half_log_det - q.half_log_det)


@register_kl(MatrixNormal, Independent)  # type: ignore[untyped-decorator]
def _kl_matrix_normal_independent(q: MatrixNormal, p: Independent[Any]) -> Tensor:
    r"""Computes the divergence to independent normal entries.

    .. math::
        \sum_{ij} \Big(\tfrac12 \frac{\mathrm{Var}_q W_{ij} + (M_q - M_p)_{ij}^2}{s_{ij}^2} - \tfrac12
        + \log s_{ij}\Big) - n \log\det L_r - m \log\det L_c
    """
    _check_events(q, p)
    normal = _normal_entries(p)
    spread = (q.variance + (q.loc - normal.loc).square()) / normal.scale.square()
    return _kl(q, p, spread.sum((-2, -1)), normal.scale.log().sum((-2, -1)) - q.half_log_det)


@register_kl(Independent, MatrixNormal)  # type: ignore[untyped-decorator]
def _kl_independent_matrix_normal(q: Independent[Any], p: MatrixNormal) -> Tensor:
    r"""Computes the divergence of independent normal entries to a matrix normal.

    .. math::
        \tfrac12 \Big(\sum_{ij} (\Sigma_r^{-1})_{ii} (\Sigma_c^{-1})_{jj} s_{ij}^2
        + \|L_r^{-1} (M_q - M_p) L_c^{-\top}\|^2 - m n\Big)
        + n \log\det L_r + m \log\det L_c - \sum_{ij} \log s_{ij}
    """
    _check_events(q, p)
    normal = _normal_entries(q)
    row_precision, col_precision = (_precision_diagonal(factor) for factor in (p.row_tril, p.col_tril))
    precision = row_precision[..., :, None] * col_precision[..., None, :]
    distance = p.whiten(normal.loc - p.loc).square().sum((-2, -1))
    trace = (precision * normal.scale.square()).sum((-2, -1))
    return _kl(q, p, trace + distance, p.half_log_det - normal.scale.log().sum((-2, -1)))


def _kl(q: Any, p: Any, quadratic: Tensor, log_ratio: Tensor) -> Tensor:
    """Puts a divergence between Gaussians together, with the batch shape of both."""
    kl = 0.5 * (quadratic - q.event_shape.numel()) + log_ratio
    return kl.expand(torch.broadcast_shapes(q.batch_shape, p.batch_shape))


def _check_events(q: Any, p: Any) -> None:
    if q.event_shape != p.event_shape:
        raise ValueError(
            f"q has event shape {tuple(q.event_shape)} and p {tuple(p.event_shape)}: a divergence needs one and the "
            "same."
        )


def _normal_entries(distribution: Independent[Any]) -> Normal:
    """The independent entries of a matrix, where they are normal."""
    normal = distribution.base_dist
    if not isinstance(normal, Normal) or distribution.reinterpreted_batch_ndims != 2:
        raise NotImplementedError("The entries are not independent normals.")
    return normal


def _precision_diagonal(factor: Tensor) -> Tensor:
    r"""Computes the diagonal of :math:`(L L^\top)^{-1}`, `(..., n)`, of a Cholesky factor."""
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity, upper=False).square().sum(-2)
