"""Independent Gaussian entries, and factors that are no random variables at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.models.base import Prior
from bayeslora_pyro.models.weights import WeightPrior
from bayeslora_pyro.types import FactorStack, Weights

__all__ = ["GaussianPrior", "PointPrior"]


@final
class GaussianPrior(WeightPrior):
    r"""Independent entries, :math:`W_{ij} \sim \mathcal{N}(0, \sigma^2)`.

    Args:
        scale: The standard deviation :math:`\sigma` of each entry.
        width_scaled: Whether to divide it by :math:`\sqrt{d_i}`, the number of inputs of the factor.
    """

    def latent_prior(self, stack: FactorStack, **given: Tensor) -> TorchDistribution:
        """Independent normals. Event shape `(d_o, d_i)`."""
        scale = self._full(stack, stack.shape, self.entry_scale(stack))
        return dist.Normal(torch.zeros_like(scale), scale).to_event(2)


@final
class PointPrior(Prior):
    """Factors that are plain parameters: maximum likelihood, as in LoRA itself, and for B in BLoB.

    References:
        | BLoB: Bayesian Low-Rank Adaptation by Backpropagation for Large Language Models (Wang et al., 2024)
        | https://arxiv.org/abs/2406.11675
    """

    latent = None

    def setup(self, stacks: Sequence[FactorStack], initial: Weights, generator: torch.Generator) -> None:
        """Starts each factor where the PEFT model has it."""
        for stack in stacks:
            self.register_parameter(f"weights_{stack.name}", nn.Parameter(initial[stack.name].clone()))

    def config(self) -> dict[str, Any]:
        """The arguments that make this prior again."""
        return {}

    def sample_weights(self, stack: FactorStack, **shared: Tensor) -> Tensor:
        """Returns the factors. Shape `(L, d_o, d_i)`."""
        weights: Tensor = getattr(self, f"weights_{stack.name}")
        return weights

    def initial_latent(self, stack: FactorStack, generator: torch.Generator) -> None:
        """There is nothing to approximate."""
        return None

    def embed(self, stack: FactorStack, weights: Tensor, **hyper: Tensor) -> Tensor:
        """Sets the parameters to these weights."""
        with torch.no_grad():
            self.sample_weights(stack).copy_(weights)
        return weights
