"""The evidence of a Laplace approximation as a function of the precision of the prior."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Evidence"]

BOUNDS = (-40.0, 40.0)
"""Between which logarithms of the precision the maximum is looked for."""


@dataclass(frozen=True)
class Evidence:
    r"""The Laplace approximation of the evidence, closed-form after one eigendecomposition.

    .. math::
        \log Z(\lambda) = \log p(\mathcal{D} \mid \theta)
        - \tfrac12 \sum_f \Big(\lambda_f \|\theta_f\|^2 + \sum_i \log(1 + \ell_{fi} / \lambda_f)\Big)

    Args:
        log_likelihood: That of all training items, in nats.
        eigenvalues: The eigenvalues :math:`\ell` of the curvature of each factor, with zeros for what is missing.
            Shape `(factors, eigenvalues)`.
        squared_norm: The squared norm of each factor. Shape `(factors,)`.

    References:
        | Bayesian Interpolation (MacKay, 1992)
        | https://doi.org/10.1162/neco.1992.4.3.415
    """

    log_likelihood: float
    eigenvalues: Tensor
    squared_norm: Tensor

    def log_evidence(self, precision: Tensor) -> Tensor:
        """The logarithm of the evidence, in nats.

        Args:
            precision: The precision of the prior of each factor. Shape `(factors,)`.
        """
        volume = (self.eigenvalues / precision.unsqueeze(-1)).log1p().sum()
        return self.log_likelihood - 0.5 * ((precision * self.squared_norm).sum() + volume)

    def effective_dimension(self, precision: Tensor) -> Tensor:
        r"""How many directions the data determine, :math:`\gamma_f = \sum_i \ell_{fi} / (\ell_{fi} + \lambda_f)`."""
        return (self.eigenvalues / (self.eigenvalues + precision.unsqueeze(-1))).sum(-1)

    def best_precision(self, group: Tensor) -> Tensor:
        r"""The precisions that maximise the evidence, where factors of a group have one in common.

        The derivative by :math:`\log \lambda` is :math:`\tfrac12 (\gamma - \lambda \|\theta\|^2)`, summed over the
        group. It falls all the way, so there is one maximum, :math:`\lambda = \gamma / \|\theta\|^2`, which bisection
        finds.

        Args:
            group: The group of each factor, from 0. Shape `(factors,)`.

        Returns:
            The precision of each factor. Shape `(factors,)`.

        Raises:
            ValueError: If a group has no curvature or only zeros for factors, so that there is no maximum.
        """
        count = int(group.max()) + 1
        norms = self.squared_norm.new_zeros(count).index_add(0, group, self.squared_norm)
        curvature = self.eigenvalues.new_zeros(count).index_add(0, group, self.eigenvalues.sum(-1))
        for index in range(count):
            if norms[index] == 0:
                raise ValueError(
                    "The evidence has no maximum: all factors of a group are zero, as B of a LoRA that is not trained. "
                    "Train it first, give precision=… as a number, or let more factors share one (per='all')."
                )
            if curvature[index] == 0:
                raise ValueError(
                    "The evidence has no maximum: the likelihood does not depend on a group of factors, as on A of a "
                    "LoRA whose B is zero. Train it first, or give precision=… as a number."
                )
        low, high = (norms.new_full((count,), bound) for bound in BOUNDS)
        for _ in range(80):
            middle = (low + high) / 2
            precision = middle.exp()
            gain = self.effective_dimension(precision[group])
            slope = norms.new_zeros(count).index_add(0, group, gain) - precision * norms
            low, high = torch.where(slope > 0, middle, low), torch.where(slope > 0, high, middle)
        return ((low + high) / 2).exp()[group]
