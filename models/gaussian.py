"""Independent Gaussian entries, and factors that are no random variables at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.models.base import Prior
from bayeslora_pyro.models.weights import WeightPrior
from bayeslora_pyro.types import FactorStack, Weights

__all__ = ["GaussianPrior", "PointPrior", "Points"]


@final
class GaussianPrior(WeightPrior):
    r"""Independent entries, :math:`W_{ij} \sim \mathcal{N}(0, \sigma^2)`.

    Args:
        scale: The standard deviation :math:`\sigma` of each entry.
        width_scaled: Whether to divide it by :math:`\sqrt{d_i}`, the number of inputs of the factor.
        scales: The standard deviations of factors that have one of their own, by stack and module, as
            `{"A_8x384/bert.encoder.layer.0.attention.self.query": 0.1}`.
    """

    def __init__(
        self, scale: float = 1.0, width_scaled: bool = False, scales: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(scale, width_scaled)
        self.scales = dict(scales or {})
        for name, value in self.scales.items():
            if value <= 0:
                raise ValueError(f"scales[{name!r}] should be positive, and is {value}.")

    def config(self) -> dict[str, Any]:
        """The arguments that make this prior again."""
        return super().config() | {"scales": self.scales}

    def setup(self, stacks: Sequence[FactorStack], initial: Weights, generator: torch.Generator) -> None:
        """Keeps the start of guides, and looks for the factors that `scales` names."""
        super().setup(stacks, initial, generator)
        known = {f"{stack.name}/{module}" for stack in stacks for module in stack.adapters}
        if unknown := sorted(self.scales.keys() - known):
            raise ValueError(
                f"scales names {unknown[0]!r}, and there is no such factor: give stack and module, such as "
                f"{min(known)!r}."
            )

    def latent_prior(self, stack: FactorStack, **given: Tensor) -> TorchDistribution:
        """Independent normals. Event shape `(d_o, d_i)`."""
        scale = self._full(stack, stack.shape, self.entry_scale(stack))
        own = [self.scales.get(f"{stack.name}/{module}") for module in stack.adapters]
        if any(value is not None for value in own):
            each = [self.scale if value is None else value for value in own]
            scale = scale * (scale.new_tensor(each) / self.scale)[:, None, None]
        return dist.Normal(torch.zeros_like(scale), scale).to_event(2)


class Points(Prior):
    """Factors that are plain parameters."""

    latent = None

    def setup(self, stacks: Sequence[FactorStack], initial: Weights, generator: torch.Generator) -> None:
        """Starts each factor where the PEFT model has it."""
        for stack in stacks:
            self.register_parameter(f"weights_{stack.name}", nn.Parameter(initial[stack.name].clone()))

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


@final
class PointPrior(Points):
    """Factors that are points and nothing else: maximum likelihood, as in LoRA itself, and for B in BLoB.

    References:
        | BLoB: Bayesian Low-Rank Adaptation by Backpropagation for Large Language Models (Wang et al., 2024)
        | https://arxiv.org/abs/2406.11675
    """

    def config(self) -> dict[str, Any]:
        """The arguments that make this prior again."""
        return {}
