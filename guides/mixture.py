"""Mixtures of independent Gaussian entries."""

from __future__ import annotations

from typing import Any, cast, final

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.guides.base import NOISE_SCALE, GuidedModel
from bayeslora_pyro.guides.gaussian import GaussianGuide
from bayeslora_pyro.normal_mixture import NormalMixture
from bayeslora_pyro.types import FactorStack

__all__ = ["MixtureGuide"]


@final
class MixtureGuide(GaussianGuide):
    r"""K mean fields per factor, with learned weights: each factor selects its component on its own.

    .. math:: q(V) = \sum_k \pi_k \prod_{ij} \mathcal{N}(V_{ij}; m_{k,ij}, s_{k,ij}^2)

    The entropy of a mixture has no closed form. The ELBO takes the estimate from the draw at hand, with the density
    of the whole mixture, :math:`\log \sum_k \pi_k q_k(V) - \log p(V)`, which is unbiased; a component that says what
    another says already pays for itself. The draw is differentiable in centres, scales and weights alike, without
    bias (:class:`~bayeslora_pyro.normal_mixture.NormalMixture` says how). Weights learn from draws between the
    components: where those are many deviations apart they hardly move, and stay near where they start, at `1/K`.

    Args:
        model: The model to approximate.
        components: The number K of components.
        spread: How far apart the centres start, in units of `scale`.
        scale: The initial standard deviation :math:`s` within a component.
        noise_scale: The initial factor of the conditional noise.
        seed: The seed of the initial location and centres.

    Raises:
        ValueError: If there are fewer than two components, or the spread is not positive.

    References:
        | Approximating Posterior Distributions in Belief Networks Using Mixtures (Bishop et al., 1997)
        | https://papers.nips.cc/paper/1392-approximating-posterior-distributions-in-belief-networks-using-mixtures
    """

    def __init__(
        self,
        model: GuidedModel,
        *,
        components: int = 2,
        spread: float = 1.0,
        scale: float = 0.05,
        noise_scale: float = NOISE_SCALE,
        seed: int = 0,
    ) -> None:
        if components < 2:
            raise ValueError(
                f"components should be at least 2, and is {components}; a single one is MeanFieldGuide."
            )
        if spread <= 0:
            raise ValueError(f"spread should be positive, and is {spread}: equal components stay equal.")
        self.components = components
        self.spread = spread
        super().__init__(model, scale=scale, noise_scale=noise_scale, seed=seed)

    def config(self) -> dict[str, Any]:
        """The arguments, beside the model, that make this guide again."""
        return {"components": self.components, "spread": self.spread} | super().config()

    def _setup_stack(
        self, stack: FactorStack, own: nn.Module, start: Tensor, generator: torch.Generator
    ) -> None:
        size, (rows, cols) = (len(start), self.components), start.shape[1:]
        offsets = torch.randn(*size, rows, cols, generator=generator).to(start)
        offsets = offsets - offsets.mean(1, keepdim=True)  # so that the mean of the mixture is the start
        own.loc = nn.Parameter(start.unsqueeze(1) + self.spread * self._initial_scale * offsets)
        own.log_scale = nn.Parameter(start.new_full((*size, rows, cols), self._initial_scale).log())
        own.logits = nn.Parameter(start.new_zeros(size))

    def get_base_dist(self, stack: FactorStack) -> TorchDistribution:
        """Mixtures of independent normals. Batch shape `(L,)`, event shape `(rows, cols)`."""
        own = self._own(stack)
        loc, log_scale, logits = (cast(Tensor, part) for part in (own.loc, own.log_scale, own.logits))
        return NormalMixture(loc, log_scale.exp(), logits)

    def _set_location(self, stack: FactorStack, latent: Tensor) -> None:
        """Moves all centres alike, so that their mean is the latent value."""
        mean = self.get_base_dist(stack).mean
        with torch.no_grad():
            cast(Tensor, self._own(stack).loc).add_((latent - mean).unsqueeze(1))
