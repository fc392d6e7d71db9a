"""A Gaussian whose covariance is a diagonal plus a matrix of low rank."""

from __future__ import annotations

from typing import Any, cast, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.guides.base import NOISE_SCALE, GuidedModel
from bayeslora_pyro.guides.gaussian import GaussianGuide
from bayeslora_pyro.types import FactorStack
from bayeslora_pyro.vec_normal import VecNormal

__all__ = ["LowRankGuide"]

INITIAL_LOADING = 0.1
"""The standard deviation of the first loadings: at zero they would have no gradient."""


@final
class LowRankGuide(GaussianGuide):
    r"""Entries that share a few directions of noise, with a closed-form KL.

    .. math:: q(\mathrm{vec}\, V) = \mathcal{N}\big(\mu,\; \mathrm{diag}(s) \, (I + F F^\top) \, \mathrm{diag}(s)\big)

    with loadings :math:`F` of shape `(d, rank)`. By the determinant lemma,
    :math:`\log\det \Sigma = 2 \sum_i \log s_i + \log\det(I + F^\top F)`, nothing of size `d × d` is ever computed.

    Args:
        model: The model to approximate.
        rank: The number of directions.
        scale: The initial standard deviation :math:`s`.
        noise_scale: The initial factor of the conditional noise.
        seed: The seed of the initial location and loadings.

    Raises:
        ValueError: If the rank is not positive.

    References:
        | Gaussian Variational Approximation with a Factor Covariance Structure (Ong et al., 2018)
        | https://arxiv.org/abs/1701.03208
    """

    def __init__(
        self,
        model: GuidedModel,
        *,
        rank: int = 4,
        scale: float = 0.05,
        noise_scale: float = NOISE_SCALE,
        seed: int = 0,
    ) -> None:
        if rank < 1:
            raise ValueError(
                f"rank should be at least 1, and is {rank}; without a direction it is MeanFieldGuide."
            )
        self.rank = rank
        super().__init__(model, scale=scale, noise_scale=noise_scale, seed=seed)

    def config(self) -> dict[str, Any]:
        """The arguments, beside the model, that make this guide again."""
        return {"rank": self.rank} | super().config()

    def _setup_stack(
        self, stack: FactorStack, own: nn.Module, start: Tensor, generator: torch.Generator
    ) -> None:
        own.loc = nn.Parameter(start.clone())
        own.log_scale = nn.Parameter(torch.full_like(start, self._initial_scale).log())
        loadings = torch.randn(len(start), start[0].numel(), self.rank, generator=generator)
        own.loadings = nn.Parameter((INITIAL_LOADING * loadings).to(start))

    def get_base_dist(self, stack: FactorStack) -> TorchDistribution:
        """Normals of low rank plus a diagonal. Batch shape `(L,)`, event shape `(rows, cols)`."""
        own = self._own(stack)
        loc, loadings = cast(Tensor, own.loc), cast(Tensor, own.loadings)
        scale = cast(Tensor, own.log_scale).exp().flatten(-2)
        vector = dist.LowRankMultivariateNormal(
            loc.flatten(-2), scale.unsqueeze(-1) * loadings, scale.square()
        )
        return VecNormal(vector, loc.shape[-2:])
