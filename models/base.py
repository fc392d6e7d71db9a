"""What a prior is: the generative side of a LoRA factor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from bayeslora_pyro.abstract import AbstractPyroModule
from bayeslora_pyro.types import WEIGHT_DIMS, FactorStack, Weights

__all__ = ["Prior"]


class Prior(AbstractPyroModule):
    r"""The prior of the LoRA factors of a model.

    A prior is written as a Pyro model of one stack, :meth:`sample_weights`, which runs inside the plate of the stack.
    What a guide approximates is its *latent* site, named :attr:`latent`: the weights themselves, or a smaller matrix
    on which the weights depend by :meth:`conditional`.

    A prior is created without knowing a PEFT model. :class:`~bayeslora_pyro.BayesianLora` copies it and calls
    :meth:`setup`, so that one object may serve several models.
    """

    latent: ClassVar[str | None] = "W"
    """The name of the site that a guide approximates; None for a prior without random variables."""

    latent_dims: ClassVar[tuple[str, str]] = WEIGHT_DIMS
    """The names of the dimensions of the latent site."""

    @abstractmethod
    def setup(self, stacks: Sequence[FactorStack], initial: Weights, generator: torch.Generator) -> None:
        """Makes the parameters of the prior.

        Args:
            stacks: The stacks that this prior is for.
            initial: The factors of the PEFT model, `(L, d_o, d_i)` each.
            generator: The only source of random numbers.
        """

    @abstractmethod
    def sample_weights(self, stack: FactorStack) -> Tensor:
        """Samples the factors of a stack, in Pyro sites within its plate. Shape `(..., L, d_o, d_i)`."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments that make this prior again."""

    def conditional(
        self, stack: FactorStack, latent: Tensor, noise_scale: Tensor | float = 1.0
    ) -> TorchDistribution | None:
        """The distribution of the weights given the latent site, its noise scaled; None if they are the same."""
        return None

    @abstractmethod
    def initial_latent(self, stack: FactorStack, generator: torch.Generator) -> Tensor | None:
        """A value of the latent site from which a guide starts. Shape `(L, rows, cols)`."""

    def embed(self, stack: FactorStack, weights: Tensor) -> Tensor:
        """Sets the parameters of the prior so that some latent value gives these weights, and returns that value.

        Args:
            stack: The stack.
            weights: The factors to represent. Shape `(L, d_o, d_i)`.
        """
        return weights

    def site(self, stack: FactorStack, name: str) -> str:
        """The name of a site of a stack."""
        return f"{stack.name}.{name}"
