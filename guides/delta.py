"""A single point."""

from __future__ import annotations

from typing import Any, cast, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.guides.base import Guide
from bayeslora_pyro.guides.sites import PointSite
from bayeslora_pyro.types import FactorStack

__all__ = ["DeltaGuide", "PointGuide"]


class PointGuide(Guide):
    """A point for each latent site."""

    site_posterior = PointSite

    def _setup_stack(
        self, stack: FactorStack, own: nn.Module, start: Tensor, generator: torch.Generator
    ) -> None:
        own.loc = nn.Parameter(start.clone())

    def get_base_dist(self, stack: FactorStack) -> TorchDistribution:
        """A delta. Batch shape `(L,)`, event shape `(rows, cols)`."""
        return dist.Delta(cast(Tensor, self._own(stack).loc), event_dim=2)

    def _set_location(self, stack: FactorStack, latent: Tensor) -> None:
        with torch.no_grad():
            cast(Tensor, self._own(stack).loc).copy_(latent)


@final
class DeltaGuide(PointGuide):
    """A point, so that the ELBO is the log joint density: maximum a posteriori.

    Where the prior has a conditional, the point is that of the inducing matrix, and the weights keep their noise.
    """

    def config(self) -> dict[str, Any]:
        """The arguments, beside the model, that make this guide again."""
        return {"noise_scale": self.initial_noise_scale, "seed": self.seed}
