"""A scale for each rank of LoRA: the random variable of a factor is a vector, and all else of it a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.models.base import LatentPrior
from bayeslora_pyro.types import FactorStack, Weights

__all__ = ["RankSpacePrior"]


@final
class RankSpacePrior(LatentPrior):
    r"""A random scale for each rank, in directions that are learned as parameters.

    .. math:: s \sim \mathcal{N}(0, \sigma^2 I_r), \qquad A = \mathrm{diag}(s) A_0, \qquad B = B_0\, \mathrm{diag}(s)

    Give it to one role and :class:`PointPrior` to the other: the update is then :math:`B\, \mathrm{diag}(s) A_0`, and
    its posterior lives in the `r` dimensions of :math:`s`. The latent site `s` has shape `(1, rank)` for each factor.
    The directions start as the rows of A (the columns of B) of unit length, and :math:`s` as their lengths: the start
    is the LoRA itself. A row of zeros stays one, with :math:`s_k = 1`, so that it can be learned.

    Args:
        scale: The standard deviation :math:`\sigma` of each scale.

    References:
        | Scalable Bayesian Low-Rank Adaptation of Large Language Models via Stochastic Variational Subspace Inference
          (Samplawski et al., 2025)
        | https://arxiv.org/abs/2506.21408
    """

    latent = "s"
    latent_dims = ("row", "rank")

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        if scale <= 0:
            raise ValueError(f"scale should be positive, and is {scale}.")
        self.scale = scale

    def config(self) -> dict[str, Any]:
        """The arguments that make this prior again."""
        return {"scale": self.scale}

    def setup(self, stacks: Sequence[FactorStack], initial: Weights, generator: torch.Generator) -> None:
        """Starts at the factors of the PEFT model."""
        for stack in stacks:
            start = initial[stack.name]
            self.register_parameter(f"directions_{stack.name}", nn.Parameter(torch.empty_like(start)))
            self.register_buffer(f"initial_{stack.name}", self.embed(stack, start), persistent=False)

    def latent_prior(self, stack: FactorStack, **given: Tensor) -> TorchDistribution:
        """Independent normals. Event shape `(1, rank)`."""
        zeros = torch.zeros_like(self.initial_latent(stack)[0])
        return dist.Normal(zeros, self.scale).to_event(2)

    def lift(self, stack: FactorStack, latent: Tensor) -> Tensor:
        """Scales the directions. Shape `(..., L, d_o, d_i)`."""
        return self.directions(stack) * _along_rank(stack, latent)

    def initial_latent(self, stack: FactorStack, generator: torch.Generator | None = None) -> Tensor:
        """The lengths of the rows of A, or of the columns of B, in the PEFT model. Shape `(L, 1, rank)`."""
        return self.get_buffer(f"initial_{stack.name}")

    def embed(self, stack: FactorStack, weights: Tensor, **hyper: Tensor) -> Tensor:
        """Represents given factors exactly, by unit directions and their lengths."""
        lengths = torch.linalg.vector_norm(weights, dim=-1 if stack.role == "A" else -2).unsqueeze(-2)
        lengths = lengths.where(lengths > 0, 1.0)
        with torch.no_grad():
            self.directions(stack).copy_(weights / _along_rank(stack, lengths))
        return lengths

    def directions(self, stack: FactorStack) -> Tensor:
        """The directions :math:`A_0`, or :math:`B_0`. Shape `(L, d_o, d_i)`."""
        directions: Tensor = getattr(self, f"directions_{stack.name}")
        return directions


def _along_rank(stack: FactorStack, scales: Tensor) -> Tensor:
    """Lays scales `(..., 1, rank)` along the rows of A, or the columns of B."""
    return scales.mT if stack.role == "A" else scales
