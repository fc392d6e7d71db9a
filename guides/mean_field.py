"""Independent Gaussian entries."""

from __future__ import annotations

from typing import cast, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.guides.gaussian import GaussianGuide
from bayeslora_pyro.types import FactorStack

__all__ = ["MeanFieldGuide"]


@final
class MeanFieldGuide(GaussianGuide):
    r"""Independent entries, :math:`q(V_{ij}) = \mathcal{N}(m_{ij}, s_{ij}^2)`, with a closed-form KL.

    Pyro's `AutoNormal` scores its sites as a delta and an auxiliary site, which `TraceMeanField_ELBO` can only
    integrate by sampling; this guide samples the site itself.

    Args:
        model: The model to approximate.
        scale: The initial standard deviation :math:`s`.
        noise_scale: The initial factor of the conditional noise.
        seed: The seed of the initial location.
    """

    independent_entries = True

    def _setup_stack(
        self, stack: FactorStack, own: nn.Module, start: Tensor, generator: torch.Generator
    ) -> None:
        own.loc = nn.Parameter(start.clone())
        own.log_scale = nn.Parameter(torch.full_like(start, self._initial_scale).log())

    def get_base_dist(self, stack: FactorStack) -> TorchDistribution:
        """Independent normals. Batch shape `(L,)`, event shape `(rows, cols)`."""
        own = self._own(stack)
        return dist.Normal(cast(Tensor, own.loc), cast(Tensor, own.log_scale).exp()).to_event(2)
