"""What priors over the entries of a factor itself have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bayeslora_pyro.models.base import LatentPrior
from bayeslora_pyro.types import FactorStack, Weights

__all__ = ["WeightPrior"]


class WeightPrior(LatentPrior):
    r"""A prior whose latent site is the factor, with a scale :math:`\sigma` for its entries.

    Args:
        scale: The scale :math:`\sigma` of each entry.
        width_scaled: Whether to divide it by :math:`\sqrt{d_i}`, the number of inputs of the factor.
    """

    def __init__(self, scale: float = 1.0, width_scaled: bool = False) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"scale should be positive, and is {scale}.")
        self.scale = scale
        self.width_scaled = width_scaled

    def config(self) -> dict[str, Any]:
        """The arguments that make this prior again."""
        return {"scale": self.scale, "width_scaled": self.width_scaled}

    def setup(self, stacks: Sequence[FactorStack], initial: Weights, generator: torch.Generator) -> None:
        """Keeps the factors of the PEFT model as the point where guides start."""
        for stack in stacks:
            self.register_buffer(f"initial_{stack.name}", initial[stack.name].clone(), persistent=False)
            self._setup_stack(stack)

    def _setup_stack(self, stack: FactorStack) -> None:
        """Makes the parameters of a stack, where there are any."""

    def initial_latent(self, stack: FactorStack, generator: torch.Generator | None = None) -> Tensor:
        """The factors that the PEFT model had. Shape `(L, d_o, d_i)`."""
        return self.get_buffer(f"initial_{stack.name}")

    def entry_scale(self, stack: FactorStack) -> float:
        """The scale of each entry of a factor, after width scaling."""
        return self.scale / stack.shape[1] ** 0.5 if self.width_scaled else self.scale

    def _full(self, stack: FactorStack, shape: Sequence[int], value: float) -> Tensor:
        """A constant with the dtype and the device of the factors."""
        return self.initial_latent(stack).new_full(tuple(shape), value)
