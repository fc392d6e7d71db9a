"""What a guide asks of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Protocol

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from bayeslora_pyro.adapters import Adapter, Features
from bayeslora_pyro.types import Batch, FactorStack, Weights

__all__ = ["GuidedLikelihood", "GuidedModel", "GuidedPrior"]


class GuidedPrior(Protocol):
    """What a guide asks of a prior."""

    latent: str | None
    latent_dims: tuple[str, str]
    local: str | None
    dims: ClassVar[Mapping[str, tuple[str, ...]]]

    def site(self, stack: FactorStack, name: str) -> str:
        """The name of a site."""

    def shared_site(self, name: str) -> str:
        """The name of a site that all stacks of the prior share."""

    def shared_priors(self) -> Mapping[str, TorchDistribution]:
        """The sites that all stacks of the prior share."""

    def hyper_priors(self, stack: FactorStack) -> Mapping[str, TorchDistribution]:
        """The hyper-sites of a stack."""

    def initial_latent(self, stack: FactorStack, generator: torch.Generator) -> Tensor | None:
        """Where to start."""

    def conditional(
        self, stack: FactorStack, latent: Tensor, noise_scale: Tensor | float = 1.0, **hyper: Tensor
    ) -> TorchDistribution | None:
        """The distribution of the weights given the latent site."""

    def lift(self, stack: FactorStack, latent: Tensor) -> Tensor:
        """The weights that the latent site determines."""

    def initial_local(self, stack: FactorStack) -> TorchDistribution:
        """What the local site is where nothing is known of the items."""

    def embed(self, stack: FactorStack, weights: Tensor, **hyper: Tensor) -> Tensor:
        """The latent value of given weights."""


class GuidedLikelihood(Protocol):
    """What a guide asks of a likelihood."""

    def num_items(self, batch: Batch) -> int:
        """The number of items of a batch."""


class GuidedModel(Protocol):
    """What a guide asks of a model: its stacks, the prior of each, the factors to start from, and its items."""

    num_data: int

    @property
    def adapter(self) -> Adapter:
        """The adapter."""

    @property
    def likelihood(self) -> GuidedLikelihood:
        """The likelihood."""

    @property
    def stacks(self) -> tuple[FactorStack, ...]:
        """The stacks of factors."""

    def prior_of(self, stack: FactorStack) -> GuidedPrior:
        """The prior of a stack."""

    def lora_weights(self) -> Weights:
        """The factors of the PEFT model."""

    def features(self, batch: Batch, kind: Features) -> Tensor:
        """What the frozen language model says of each item."""
