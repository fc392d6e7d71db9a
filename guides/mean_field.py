"""Independent Gaussian entries."""

from __future__ import annotations

from typing import Any, cast, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.guides.base import Guide, GuidedModel
from bayeslora_pyro.types import FactorStack

__all__ = ["MeanFieldGuide"]


@final
class MeanFieldGuide(Guide):
    r"""Independent entries, :math:`q(V_{ij}) = \mathcal{N}(m_{ij}, s_{ij}^2)`, with a closed-form KL.

    Pyro's `AutoNormal` scores its sites as a delta and an auxiliary site, which `TraceMeanField_ELBO` can only
    integrate by sampling; this guide samples the site itself.

    Args:
        model: The model to approximate.
        scale: The initial standard deviation :math:`s`.
        noise_scale: The initial factor of the conditional noise.
        seed: The seed of the initial location.
    """

    def __init__(
        self, model: GuidedModel, *, scale: float = 0.05, noise_scale: float = 0.1, seed: int = 0
    ) -> None:
        if scale <= 0:
            raise ValueError(f"scale should be positive, and is {scale}.")
        self._initial_scale = scale
        super().__init__(model, noise_scale=noise_scale, seed=seed)

    def config(self) -> dict[str, Any]:
        """The arguments, beside the model, that make this guide again."""
        return {"scale": self._initial_scale, "noise_scale": self.initial_noise_scale, "seed": self.seed}

    def _setup_stack(
        self, stack: FactorStack, own: nn.Module, start: Tensor, generator: torch.Generator
    ) -> None:
        own.loc = nn.Parameter(start.clone())
        own.log_scale = nn.Parameter(torch.full_like(start, self._initial_scale).log())

    def get_base_dist(self, stack: FactorStack) -> TorchDistribution:
        """Independent normals. Batch shape `(L,)`, event shape `(rows, cols)`."""
        own = self._own(stack)
        return dist.Normal(cast(Tensor, own.loc), cast(Tensor, own.log_scale).exp()).to_event(2)

    def _set_location(self, stack: FactorStack, latent: Tensor) -> None:
        with torch.no_grad():
            cast(Tensor, self._own(stack).loc).copy_(latent)
