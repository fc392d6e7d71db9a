"""The linear algebra of inducing variables: maps with orthonormal rows, and LoRA factors in orthonormal form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["InducingMap", "orthonormal_factor"]


@dataclass(frozen=True, eq=False)
class InducingMap:
    r"""One side of a sparse-GP prior: the rows, or the columns, of a matrix seen from its inducing variables.

    With :math:`K = Z Z^\top + D^2 = L L^\top`, the rows of

    .. math:: Q = L^{-1} [Z \; D], \qquad Q Q^\top = I

    are orthonormal, whatever :math:`Z` is, as long as :math:`D > 0`. Nothing is computed before it is used, and a map
    is a value: new locations make a new map, so no cached product can go stale.

    Args:
        locations: The inducing locations :math:`Z`. Shape `(..., p, d)`.
        nuggets: The standard deviations :math:`D` of the nugget, all positive. Shape `(..., p)`.

    References:
        | Bayesian-LoRA (Lin et al., 2026), Section 3; Sparse Uncertainty Representation in Deep Learning with Inducing
          Weights (Ritter et al., 2021)
        | https://arxiv.org/abs/2105.14594
    """

    locations: Tensor
    nuggets: Tensor

    @property
    def size(self) -> int:
        """The size `d` of the side that is mapped."""
        return self.locations.shape[-1]

    @property
    def rank(self) -> int:
        """The number `p` of inducing variables."""
        return self.locations.shape[-2]

    @cached_property
    def batch_shape(self) -> torch.Size:
        """The shape of the batch of maps."""
        return torch.broadcast_shapes(self.locations.shape[:-2], self.nuggets.shape[:-1])

    @cached_property
    def _joint(self) -> Tensor:
        r"""The matrix :math:`[Z \; D]`, in float64. Shape `(..., p, d + p)`."""
        batch = self.batch_shape
        joint = torch.cat(
            [
                self.locations.expand(*batch, *self.locations.shape[-2:]),
                self.nuggets.diag_embed().expand(*batch, self.rank, self.rank),
            ],
            dim=-1,
        )
        return joint.double()

    @cached_property
    def cholesky(self) -> Tensor:
        r"""The Cholesky factor :math:`L` of :math:`K`, in float64. Shape `(..., p, p)`."""
        return torch.linalg.cholesky(self._joint @ self._joint.mT)

    @cached_property
    def matrix(self) -> Tensor:
        r"""The matrix :math:`Q`, computed in float64. Shape `(..., p, d + p)`."""
        # A small inverse and one product: batched triangular solves of wide right-hand sides are slow on CPUs.
        identity = torch.eye(self.rank, dtype=torch.float64, device=self.cholesky.device)
        inverse = torch.linalg.solve_triangular(self.cholesky, identity.expand_as(self.cholesky), upper=False)
        return (inverse @ self._joint).to(self.locations.dtype)

    def whiten(self, inducing: Tensor) -> Tensor:
        r"""Computes :math:`L^{-1} U` in float64. Shape `(..., p, n)`."""
        solved = torch.linalg.solve_triangular(self.cholesky, inducing.double(), upper=False)
        return solved.to(inducing.dtype)

    @property
    def signal(self) -> Tensor:
        r"""The part :math:`R = L^{-1} Z`. Shape `(..., p, d)`."""
        return self.matrix[..., : self.size]

    @property
    def noise(self) -> Tensor:
        r"""The part :math:`S = L^{-1} D`. Shape `(..., p, p)`."""
        return self.matrix[..., self.size :]

    def same_as(self, other: InducingMap) -> bool:
        """Whether two maps are one and the same, so that they cancel in a divergence."""
        return self is other or (
            self.locations is other.locations
            and (self.nuggets is other.nuggets or torch.equal(self.nuggets, other.nuggets))
        )


def orthonormal_factor(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    r"""Splits matrices into a core and orthonormal rows, :math:`M = C Q` with :math:`Q Q^\top = I`.

    The best approximation of that rank where the matrix has a higher one (truncated singular value decomposition).

    Args:
        matrix: The matrices :math:`M`. Shape `(..., m, n)`.
        rank: The number of rows of :math:`Q`, at most `min(m, n)`.

    Returns:
        The cores :math:`C`, shape `(..., m, rank)`, and the rows :math:`Q`, shape `(..., rank, n)`.
    """
    left, singular, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    core = left[..., :rank] * singular[..., None, :rank]
    return core.to(matrix.dtype), right[..., :rank, :].to(matrix.dtype)
