"""A Gaussian over all entries of a matrix, as a distribution of matrices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    constraints,
    register_kl,
)

__all__ = ["VecNormal"]


class VecNormal(TorchDistribution):
    r"""The distribution of a matrix whose vector of entries, row by row, is Gaussian.

    .. math:: \mathrm{vec}\, V \sim \mathcal{N}(\mu, \Sigma)

    The covariance is what the vector has: full, or of low rank plus a diagonal.

    Args:
        vector: The distribution of the vector. Batch shape `(...)`, event shape `(m n,)`.
        shape: The shape `(m, n)` of the matrix.

    Raises:
        ValueError: If the vector does not fill the matrix.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}  # pyright: ignore
    support = constraints.independent(constraints.real, 2)  # pyright: ignore
    has_rsample = True

    def __init__(
        self,
        vector: MultivariateNormal | LowRankMultivariateNormal,
        shape: Sequence[int],
        validate_args: bool | None = None,
    ) -> None:
        self.vector: Any = vector
        if vector.event_shape != (math.prod(shape),) or len(shape) != 2:
            raise ValueError(
                f"shape is {tuple(shape)}, but vector has {vector.event_shape[0]} entries: shape should be that of a "
                "matrix with as many."
            )
        super().__init__(vector.batch_shape, torch.Size(shape), validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: VecNormal | None = None) -> VecNormal:
        """Broadcasts the batch shape."""
        new: VecNormal = self._get_checked_instance(VecNormal, _instance)  # type: ignore[no-untyped-call]
        new.vector = self.vector.expand(torch.Size(batch_shape))
        super(VecNormal, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws matrices. Shape `(*sample_shape, *batch_shape, m, n)`."""
        return self._as_matrix(self.vector.rsample(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Computes the exact log-density; by the determinant lemma where the covariance is of low rank."""
        if self._validate_args:
            self._validate_sample(value)
        return self.vector.log_prob(value.flatten(-2))

    @property
    def mean(self) -> Tensor:
        """The mean. Shape `(*batch_shape, m, n)`."""
        return self._as_matrix(self.vector.mean)

    @property
    def variance(self) -> Tensor:
        """The variance of each entry. Shape `(*batch_shape, m, n)`."""
        return self._as_matrix(self.vector.variance)

    def _as_matrix(self, vector: Tensor) -> Tensor:
        return vector.unflatten(-1, self.event_shape)


@register_kl(VecNormal, Independent)  # type: ignore[untyped-decorator]
def _kl_vec_normal_independent(q: VecNormal, p: Independent[Any]) -> Tensor:
    r"""Computes the divergence to independent normal entries, of any covariance :math:`\Sigma`.

    .. math::
        \sum_{ij} \Big(\tfrac12 \frac{\Sigma_{ij,ij} + (\mu_q - \mu_p)_{ij}^2}{s_{ij}^2} - \tfrac12
        + \log s_{ij}\Big) - \tfrac12 \log\det \Sigma

    With :math:`\Sigma = D + F F^\top` of low rank, the determinant is that of the lemma,
    :math:`\log\det \Sigma = \log\det D + \log\det(I + F^\top D^{-1} F)`.
    """
    normal = p.base_dist
    if not isinstance(normal, Normal) or p.event_shape != q.event_shape:
        raise NotImplementedError("The entries are not independent normals of the same shape.")
    size = q.event_shape.numel()
    half_log_det = q.vector.entropy() - 0.5 * size * (1 + math.log(2 * math.pi))
    spread = (q.variance + (q.mean - normal.loc).square()) / normal.scale.square()
    return (0.5 * (spread - 1) + normal.scale.log()).sum((-2, -1)) - half_log_det
