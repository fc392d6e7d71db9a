"""Automatic relevance determination: a precision for each rank of LoRA."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.models.weights import WeightPrior
from bayeslora_pyro.types import FactorStack

__all__ = ["ArdPrior"]


@final
class ArdPrior(WeightPrior):
    r"""A precision :math:`\alpha_k` for each rank: for each row :math:`w_k` of A, and each column of B.

    .. math:: w_k \mid \alpha_k \sim \mathcal{N}(0, \alpha_k^{-1} I)

    Ranks that the data do not need get a large precision; :func:`effective_ranks` counts those that are left. It is
    learned through the ELBO (type-II maximum likelihood; the best one is :math:`1 / \alpha_k = \mathbb{E}_q \|w_k\|^2
    / \dim w_k`), or has a hyper-prior of mean :math:`1 / \sigma^2`,

    .. math:: \alpha_k \sim \mathrm{Gamma}(a, a \sigma^2)

    Args:
        scale: Where the standard deviation :math:`\alpha_k^{-1/2}` starts, :math:`\sigma`.
        width_scaled: Whether to divide it by :math:`\sqrt{d_i}`, the number of inputs of the factor.
        concentration: The concentration :math:`a` of the hyper-prior; None to learn the precisions.

    References:
        | Bayesian PCA (Bishop, 1998), Section 3; Variational Bayesian low-rank matrix factorisation (Lim and Teh, 2007)
        | https://papers.nips.cc/paper/1549-bayesian-pca
    """

    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"precision": ("rank",)}

    def __init__(
        self, scale: float = 1.0, width_scaled: bool = False, concentration: float | None = None
    ) -> None:
        super().__init__(scale, width_scaled)
        if concentration is not None and concentration <= 0:
            raise ValueError(f"concentration should be positive, or None, and is {concentration}.")
        self.concentration = concentration

    def config(self) -> dict[str, Any]:
        """The arguments that make this prior again."""
        return super().config() | {"concentration": self.concentration}

    def _setup_stack(self, stack: FactorStack) -> None:
        if self.concentration is None:
            start = self._full(stack, (len(stack), _rank(stack)), self.entry_scale(stack))
            self.register_parameter(f"log_precision_{stack.name}", nn.Parameter(-2 * start.log()))

    def hyper_priors(self, stack: FactorStack) -> Mapping[str, TorchDistribution]:
        """The precisions, where they have a hyper-prior. Event shape `(rank,)`."""
        if self.concentration is None:
            return {}
        concentration = self._full(stack, (_rank(stack),), self.concentration)
        return {
            "precision": dist.Gamma(concentration, concentration * self.entry_scale(stack) ** 2).to_event(1)
        }

    def latent_prior(self, stack: FactorStack, **given: Tensor) -> TorchDistribution:
        """Independent normals, alike within a rank. Batch shape `(..., L)`, event shape `(d_o, d_i)`."""
        precision = given["precision"] if "precision" in given else self.precision(stack)
        scale = precision.rsqrt().unsqueeze(-1 if stack.role == "A" else -2)
        scale = scale.expand(*precision.shape[:-1], *stack.shape)
        return dist.Normal(torch.zeros_like(scale), scale).to_event(2)

    def precision(self, stack: FactorStack) -> Tensor:
        """The learned precisions. Shape `(L, rank)`.

        Raises:
            ValueError: If they are a latent site, so that there is no one value.
        """
        if self.concentration is not None:
            raise ValueError(
                f"The precisions have a hyper-prior (concentration={self.concentration}): draw them with "
                f"Posterior.sample, as {self.site(stack, 'precision')!r}."
            )
        log_precision: Tensor = getattr(self, f"log_precision_{stack.name}")
        return log_precision.exp()


def _rank(stack: FactorStack) -> int:
    return stack.shape[0] if stack.role == "A" else stack.shape[1]
