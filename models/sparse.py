"""Priors for sparse factors: Laplace entries, and the horseshoe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from bayeslora_pyro.models.weights import WeightPrior
from bayeslora_pyro.types import WEIGHT_DIMS, FactorStack

__all__ = ["HorseshoePrior", "LaplacePrior"]


@final
class LaplacePrior(WeightPrior):
    r"""Independent entries, :math:`p(W_{ij}) = \exp(-|W_{ij}| / b) / 2b`.

    Under a point, it is the lasso: a penalty on absolute values, which leaves entries at zero.

    Args:
        scale: The mean absolute value :math:`b` of each entry.
        width_scaled: Whether to divide it by :math:`\sqrt{d_i}`, the number of inputs of the factor.

    References:
        | The Bayesian Lasso (Park and Casella, 2008)
        | https://doi.org/10.1198/016214508000000337
    """

    def latent_prior(self, stack: FactorStack, **given: Tensor) -> TorchDistribution:
        """Independent Laplace distributions. Event shape `(d_o, d_i)`."""
        scale = self._full(stack, stack.shape, self.entry_scale(stack))
        return dist.Laplace(torch.zeros_like(scale), scale).to_event(2)


@final
class HorseshoePrior(WeightPrior):
    r"""Entries that are either shrunk to nothing or left alone.

    .. math::
        \tau_f \sim \mathcal{C}^+(0, \sigma), \quad \lambda_{f,ij} \sim \mathcal{C}^+(0, 1), \quad
        W_{f,ij} \sim \mathcal{N}(0, \tau_f^2 \lambda_{f,ij}^2)

    The joint density has no bound where :math:`\lambda` and :math:`W` go to zero together, so a point estimate of both
    means nothing in the long run: give it a guide with a width.

    Args:
        scale: The median :math:`\sigma` of the scale :math:`\tau_f` that the entries of a factor share.
        width_scaled: Whether to divide it by :math:`\sqrt{d_i}`, the number of inputs of the factor.

    References:
        | The horseshoe estimator for sparse signals (Carvalho, Polson and Scott, 2010), Section 1
        | https://doi.org/10.1093/biomet/asq017
    """

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"global_scale": (), "local_scale": WEIGHT_DIMS}

    def __init__(self, scale: float = 0.1, width_scaled: bool = False) -> None:
        super().__init__(scale, width_scaled)

    def hyper_priors(self, stack: FactorStack) -> Mapping[str, TorchDistribution]:
        r"""The scales :math:`\tau` of the factor and :math:`\lambda` of its entries."""
        return {
            "global_scale": dist.HalfCauchy(self._full(stack, (), self.entry_scale(stack))),
            "local_scale": dist.HalfCauchy(self._full(stack, stack.shape, 1.0)).to_event(2),
        }

    def latent_prior(self, stack: FactorStack, **given: Tensor) -> TorchDistribution:
        """Independent normals. Batch shape `(..., L)`, event shape `(d_o, d_i)`."""
        scale = given["global_scale"][..., None, None] * given["local_scale"]
        return dist.Normal(torch.zeros_like(scale), scale).to_event(2)
