"""One Gaussian over all entries of a factor."""

from __future__ import annotations

from typing import cast, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.guides.cholesky import CholeskyFactor
from bayeslora_pyro.guides.gaussian import GaussianGuide
from bayeslora_pyro.types import FactorStack
from bayeslora_pyro.vec_normal import VecNormal

__all__ = ["MAX_ENTRIES", "FullRankGuide"]

MAX_ENTRIES = 1024
"""The largest number of entries of a latent site: its covariance has half as many parameters as its square."""


@final
class FullRankGuide(GaussianGuide):
    r"""One multivariate normal over the entries of each factor, with a closed-form KL.

    .. math:: q(\mathrm{vec}\, V) = \mathcal{N}(\mu, C C^\top)

    with a Cholesky factor :math:`C`: a factor with `d` entries has `d(d + 3)/2` parameters.

    Args:
        model: The model to approximate.
        scale: The initial standard deviation of each entry.
        noise_scale: The initial factor of the conditional noise.
        seed: The seed of the initial location.

    Raises:
        ValueError: If a latent site has more than `MAX_ENTRIES` entries.

    References:
        | Automatic Differentiation Variational Inference (Kucukelbir et al., 2017), Section 2.4
        | https://arxiv.org/abs/1603.00788
    """

    def _setup_stack(
        self, stack: FactorStack, own: nn.Module, start: Tensor, generator: torch.Generator
    ) -> None:
        num_factors, entries = len(start), start[0].numel()
        if entries > MAX_ENTRIES:
            raise ValueError(
                f"The latent site of {stack.name} has {entries:,} entries, and a covariance of them all "
                f"{entries * (entries + 1) // 2:,} parameters for each of {num_factors} factors; FullRankGuide takes "
                f"{MAX_ENTRIES:,} entries. Take MatrixNormalGuide or LowRankGuide, or a prior with a small latent "
                "site, such as InducingPrior."
            )
        own.loc = nn.Parameter(start.clone())
        own.cholesky = CholeskyFactor(num_factors, entries, self._initial_scale, start)

    def get_base_dist(self, stack: FactorStack) -> TorchDistribution:
        """Multivariate normals. Batch shape `(L,)`, event shape `(rows, cols)`."""
        own = self._own(stack)
        loc, cholesky = cast(Tensor, own.loc), cast(CholeskyFactor, own.cholesky)()
        return VecNormal(dist.MultivariateNormal(loc.flatten(-2), scale_tril=cholesky), loc.shape[-2:])
