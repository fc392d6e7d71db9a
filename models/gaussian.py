"""Independent Gaussian entries, and factors that are no random variables at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, final

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from bayeslora_pyro.models.base import Prior
from bayeslora_pyro.types import WEIGHT_DIMS, FactorStack, Weights, named_dims

__all__ = ["GaussianPrior", "PointPrior"]


@final
class GaussianPrior(Prior):
    r"""Independent entries, :math:`W_{ij} \sim \mathcal{N}(0, \sigma^2)`.

    Args:
        scale: The standard deviation :math:`\sigma` of each entry.
        width_scaled: Whether to divide it by :math:`\sqrt{d_i}`, the number of inputs of the factor.
    """

    def __init__(self, scale: float = 1.0, width_scaled: bool = False) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"scale should be positive, and is {scale}.")
        self.scale = scale
        self.width_scaled = width_scaled

    def setup(self, stacks: Sequence[FactorStack], initial: Weights, generator: torch.Generator) -> None:
        """Keeps the factors of the PEFT model as the point where guides start."""
        for stack in stacks:
            self.register_buffer(f"initial_{stack.name}", initial[stack.name].clone(), persistent=False)

    def config(self) -> dict[str, Any]:
        """The arguments that make this prior again."""
        return {"scale": self.scale, "width_scaled": self.width_scaled}

    def sample_weights(self, stack: FactorStack) -> Tensor:
        """Samples the factors of a stack. Shape `(..., L, d_o, d_i)`."""
        start = self.initial_latent(stack)
        scale = self.scale / stack.shape[1] ** 0.5 if self.width_scaled else self.scale
        prior = dist.Normal(start.new_zeros(stack.shape), start.new_tensor(scale)).to_event(2)
        weights: Tensor = pyro.sample(self.site(stack, "W"), prior, infer=named_dims(WEIGHT_DIMS))
        return weights

    def initial_latent(self, stack: FactorStack, generator: torch.Generator | None = None) -> Tensor:
        """The factors that the PEFT model had. Shape `(L, d_o, d_i)`."""
        return self.get_buffer(f"initial_{stack.name}")


@final
class PointPrior(Prior):
    """Factors that are plain parameters: maximum likelihood, as in LoRA itself, and for B in BLoB.

    References:
        | BLoB: Bayesian Low-Rank Adaptation by Backpropagation for Large Language Models (Wang et al., 2024)
        | https://arxiv.org/abs/2406.11675
    """

    latent: ClassVar[str | None] = None

    def setup(self, stacks: Sequence[FactorStack], initial: Weights, generator: torch.Generator) -> None:
        """Starts each factor where the PEFT model has it."""
        for stack in stacks:
            self.register_parameter(f"weights_{stack.name}", nn.Parameter(initial[stack.name].clone()))

    def config(self) -> dict[str, Any]:
        """The arguments that make this prior again."""
        return {}

    def sample_weights(self, stack: FactorStack) -> Tensor:
        """Returns the factors. Shape `(L, d_o, d_i)`."""
        weights: Tensor = getattr(self, f"weights_{stack.name}")
        return weights

    def initial_latent(self, stack: FactorStack, generator: torch.Generator) -> None:
        """There is nothing to approximate."""
        return None

    def embed(self, stack: FactorStack, weights: Tensor) -> Tensor:
        """Sets the parameters to these weights."""
        with torch.no_grad():
            self.sample_weights(stack).copy_(weights)
        return weights
