"""Factors that are points, with noise relative to their entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from bayeslora_pyro.adapters import Noise, NoiseScope, NoisyOperator, Operator
from bayeslora_pyro.models.gaussian import Points
from bayeslora_pyro.relative_noise import RelativeNoise
from bayeslora_pyro.types import FactorStack

__all__ = ["RelativeNoisePrior"]

Reduction = Literal["mean", "sum"]
Family = Literal["dropout", "aggregate"]


@final
class RelativeNoisePrior(Points):
    r"""Factors that are parameters A, around which every item of the data has noise of its own.

    .. math:: p(W_{ij}) = \mathcal{N}(0, c A_{ij}^2), \quad c = \frac{p}{1 - p}, \qquad
        q(W_{ij} \mid x_n) = \mathcal{N}(A_{ij}, \alpha(x_n) A_{ij}^2)

    c is the variance of Gaussian dropout with the rate p. The prior moves with A, so it is an empirical one, and the
    divergence of each entry has no gradient in A,

    .. math:: \mathrm{KL} = \tfrac12 \Big[\frac{1 + \alpha}{c} + \ln c - \ln \alpha - 1\Big] \ge \frac{1}{2 c},
        \qquad \text{least at } \alpha = c

    The site `alpha` of each stack is the pair of mean and variance, :math:`(0, c)` under the prior and
    :math:`(1, \alpha)` under a guide; the noise itself is the same under both. It belongs to the items of the data:
    the factors without an item, as those that are saved, are A.

    Args:
        rate: The rate p.
        family: `"dropout"`, as above; or `"aggregate"`, :math:`\mathcal{N}(A_{ij}, \bar\alpha A_{ij}^2)` with
            :math:`\bar\alpha` the mean over a batch, whose divergence
            :math:`\tfrac12 [\alpha / \bar\alpha - 1 - \ln(\alpha / \bar\alpha)]` only holds the items together.
        kl_reduction: `"sum"` over the entries of a factor, the divergence itself, or their `"mean"`. Against a sum over
            tens of thousands of entries no likelihood of an item can move :math:`\alpha` from c.
        noise_scope: What sees one draw of the noise: a `"token"`; a `"sequence"`, all tokens of an item; or all that
            its `"weight"` is applied to, which alone is exact for more than one token.

    References:
        | Variational Dropout and the Local Reparameterization Trick (Kingma et al., 2015)
        | https://arxiv.org/abs/1506.02557
        | Bayesian Autoregressive and Recurrent Neural Networks (Coscia et al., 2025), for the aggregate
        | https://arxiv.org/abs/2501.18665
    """

    local = "alpha"

    def __init__(
        self,
        rate: float = 0.1,
        family: Family = "dropout",
        kl_reduction: Reduction = "mean",
        noise_scope: NoiseScope = "token",
    ) -> None:
        super().__init__()
        if not 0 < rate < 1:
            raise ValueError(f"rate should lie between 0 and 1, and is {rate}.")
        for name, value, kinds in (
            ("family", family, Family),
            ("kl_reduction", kl_reduction, Reduction),
            ("noise_scope", noise_scope, NoiseScope),
        ):
            if value not in get_args(kinds):
                raise ValueError(f"{name} should be one of {', '.join(get_args(kinds))}, and is {value!r}.")
        self.rate = rate
        self.family: Family = family
        self.kl_reduction: Reduction = kl_reduction
        self.noise_scope: NoiseScope = noise_scope

    @property
    def variance(self) -> float:
        """The variance c of the noise of an entry of 1."""
        return self.rate / (1 - self.rate)

    def config(self) -> dict[str, Any]:
        """The arguments that make this prior again."""
        return {
            "rate": self.rate,
            "family": self.family,
            "kl_reduction": self.kl_reduction,
            "noise_scope": self.noise_scope,
        }

    def local_prior(self, stack: FactorStack) -> RelativeNoise:
        """The pair :math:`(0, c)` of each factor. Event shape `(L, 2)`."""
        size = stack.shape[0] * stack.shape[1] if self.kl_reduction == "sum" else 1
        return RelativeNoise(self._pairs(stack, 0.0), size, aggregate=self.family == "aggregate")

    def initial_local(self, stack: FactorStack) -> RelativeNoise:
        """The pair :math:`(1, c)` of each factor, Gaussian dropout. Event shape `(L, 2)`."""
        return RelativeNoise(self._pairs(stack, 1.0))

    def local_operators(
        self, stack: FactorStack, weights: Tensor, local: Tensor, noise: Noise
    ) -> Sequence[Operator]:
        """What applies the factors with their noise to activations.

        Args:
            stack: The stack.
            weights: The factors. Shape `(L, d_o, d_i)`, or `(S, L, d_o, d_i)`.
            local: The pairs of each row of all tiles. Shape `(rows, L, 2)`.
            noise: The noise of these rows.
        """
        parts = zip(stack.adapters, weights.unbind(-3), local.unbind(-2), strict=True)
        return [
            NoisyOperator(weight, pair, noise, f"{stack.name}/{module}", self.noise_scope)
            for module, weight, pair in parts
        ]

    def _pairs(self, stack: FactorStack, mean: float) -> Tensor:
        weights = self.sample_weights(stack)
        if self.family == "aggregate":
            mean = 1.0
        pair = torch.tensor([mean, self.variance], dtype=weights.dtype, device=weights.device)
        return pair.expand(len(stack), 2)
