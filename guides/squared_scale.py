"""Independent Gaussian entries whose standard deviation is the square of a parameter, the family of BLoB."""

from __future__ import annotations

from typing import cast, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.guides.gaussian import GaussianGuide
from bayeslora_pyro.types import FactorStack

__all__ = ["SquaredScaleGuide"]


@final
class SquaredScaleGuide(GaussianGuide):
    r"""Independent entries, :math:`q(A_{ij}) = \mathcal{N}(M_{ij}, (G_{ij}^2)^2)`, with a closed-form KL.

    The family is that of :class:`MeanFieldGuide`; a step of the optimizer goes elsewhere. Under a prior
    :math:`\mathcal{N}(0, \sigma_p^2)` the divergence has the gradients

    .. math:: \frac{\partial \mathrm{KL}}{\partial M} = \frac{M}{\sigma_p^2}, \qquad
        \frac{\partial \mathrm{KL}}{\partial G} = \frac{2 G^3}{\sigma_p^2} - \frac{2}{G}

    and that of the log-likelihood shrinks with :math:`G`. It starts at :math:`G \sim \mathrm{Uniform}(\epsilon /
    \sqrt 2, \epsilon)`, each standard deviation thus between half of :math:`\epsilon^2` and all of it.

    Args:
        model: The model to approximate.
        scale: The largest initial standard deviation, :math:`\epsilon^2`.
        noise_scale: The initial factor of the conditional noise.
        seed: The seed of the initial location and scales.

    References:
        | BLoB: Bayesian Low-Rank Adaptation by Backpropagation for Large Language Models (Wang et al., 2024), Section 3
        | https://arxiv.org/abs/2406.11675
    """

    independent_entries = True

    def _setup_stack(
        self, stack: FactorStack, own: nn.Module, start: Tensor, generator: torch.Generator
    ) -> None:
        own.loc = nn.Parameter(start.clone())
        low, high = (self._initial_scale / 2) ** 0.5, self._initial_scale**0.5
        share = torch.rand(start.shape, generator=generator).to(start)
        own.root_scale = nn.Parameter(low + (high - low) * share)

    def get_base_dist(self, stack: FactorStack) -> TorchDistribution:
        """Independent normals. Batch shape `(L,)`, event shape `(rows, cols)`."""
        own = self._own(stack)
        return dist.Normal(cast(Tensor, own.loc), cast(Tensor, own.root_scale).square()).to_event(2)
