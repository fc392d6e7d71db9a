"""Dropout of the inputs of a factor, as a distribution over factors."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast, final

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import Independent, Normal, constraints, register_kl

from bayeslora_pyro.adapters import Dropout, PerItem
from bayeslora_pyro.guides.base import NOISE_SCALE, Guide, GuidedModel
from bayeslora_pyro.types import FactorStack

__all__ = ["ColumnDropout", "DropoutGuide"]


@final
class ColumnDropout(TorchDistribution):
    r"""A matrix whose columns are dropped at random, :math:`W = M \, \mathrm{diag}(z) / (1 - \rho)`.

    .. math:: z_j \sim \mathrm{Bernoulli}(1 - \rho), \qquad \mathbb{E} W = M

    It has atoms and no density; :meth:`log_prob` is the logarithm of their mass, as that of Pyro's `Delta` is, which
    this becomes with :math:`\rho = 0`. A column of M that is zero has nothing to drop.

    Args:
        loc: The matrix M. Shape `(..., d_o, d_i)`.
        rate: The share :math:`\rho` of columns that are dropped.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.independent(constraints.real, 2)
    }
    support = constraints.independent(constraints.real, 2)
    has_rsample = True  # the mask does not depend on M

    def __init__(self, loc: Tensor, rate: float, validate_args: bool | None = None) -> None:
        self.loc, self.rate = loc, rate
        super().__init__(loc.shape[:-2], loc.shape[-2:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The matrix M."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        r"""The variance of each entry, :math:`M_{ij}^2 \rho / (1 - \rho)`."""
        return self.loc.square() * (self.rate / (1 - self.rate))

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws matrices, each with a mask of its own. Shape `(*sample_shape, ..., d_o, d_i)`."""
        shape = self._extended_shape(sample_shape)
        mask = torch.bernoulli(self.loc.new_full((*shape[:-2], 1, shape[-1]), 1 - self.rate))
        return self.loc / (1 - self.rate) * mask

    def log_prob(self, value: Tensor) -> Tensor:
        """The logarithm of the mass of a matrix; `-inf` for what cannot be drawn. Shape `(...)`."""
        kept = (value == self.loc / (1 - self.rate)).all(-2)
        mass = (
            kept * (1 - self.rate) + (value == 0).all(-2) * self.rate
        )  # 1 for a column of zeros, which is both
        return mass.to(self.loc.dtype).log().sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ColumnDropout:
        """The same distribution, independent over a larger batch."""
        new = self._get_checked_instance(ColumnDropout, _instance)  # type: ignore[no-untyped-call]
        new.loc, new.rate = self.loc.expand(*batch_shape, *self.event_shape), self.rate
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new


@register_kl(ColumnDropout, Independent)  # type: ignore[untyped-decorator]
def _kl_column_dropout_normal(q: ColumnDropout, p: Any) -> Tensor:
    r"""The entropy of the mask is a constant; the rest is a weight decay of M.

    .. math:: \mathbb{E}_q \log q(W) - \mathbb{E}_q \log p(W) = \frac{\|M\|^2}{2 (1 - \rho) \sigma^2} + \mathrm{const}
    """
    normal: Any = p.base_dist
    if not isinstance(normal, Normal) or p.reinterpreted_batch_ndims != 2:
        raise NotImplementedError
    square = q.variance + (q.mean - normal.mean).square()
    log_prior = -square / (2 * normal.variance) - normal.stddev.log() - math.log(2 * math.pi) / 2
    entropy = -sum(share * math.log(share) for share in (q.rate, 1 - q.rate) if share > 0)
    return -entropy * q.loc.ne(0).any(-2).sum(-1) - log_prior.sum((-2, -1))


@final
class DropoutGuide(Guide):
    r"""Monte Carlo dropout: a point whose columns, the inputs of the factor, are dropped at random.

    .. math:: q(W) = M \, \mathrm{diag}(z) / (1 - \rho), \qquad z_j \sim \mathrm{Bernoulli}(1 - \rho)

    This is Gal and Ghahramani's own variant: dropout is a distribution over factors, so a draw drops the same inputs
    for all tokens it sees, at a prediction as in a fit, and a draw under a seed is one function. (Dropout layers draw a
    mask for each token.) For a prior :math:`\mathcal{N}(0, \sigma^2)` its divergence is, up to a constant, the weight
    decay :math:`\|M\|^2 / (2 (1 - \rho) \sigma^2)`, which is what their approximation comes to (they write
    :math:`M / (1 - \rho)` for M). q has atoms and no density, so the ELBO is known up to a constant, as that of a
    :class:`DeltaGuide` is, and no k-hat can be had of it.

    Args:
        model: The model to approximate.
        rate: The share :math:`\rho` of inputs that are dropped.
        noise_scale: The initial factor of the conditional noise.
        seed: The seed of the initial location.

    References:
        | Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning (Gal and Ghahramani,
          2016), Section 3 and Appendix, Section 4
        | https://arxiv.org/abs/1506.02142
    """

    def __init__(
        self, model: GuidedModel, *, rate: float = 0.1, noise_scale: float = NOISE_SCALE, seed: int = 0
    ) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"rate should be at least 0 and less than 1, and is {rate}.")
        self.rate = rate
        super().__init__(model, noise_scale=noise_scale, seed=seed)

    def config(self) -> dict[str, Any]:
        """The arguments, beside the model, that make this guide again."""
        return {"rate": self.rate, "noise_scale": self.initial_noise_scale, "seed": self.seed}

    def _setup_stack(
        self, stack: FactorStack, own: nn.Module, start: Tensor, generator: torch.Generator
    ) -> None:
        own.loc = nn.Parameter(start.clone())

    def get_base_dist(self, stack: FactorStack) -> TorchDistribution:
        """A point with dropped columns. Batch shape `(L,)`, event shape `(rows, cols)`."""
        return ColumnDropout(cast(Tensor, self._own(stack).loc), self.rate)

    def get_per_item(self, stack: FactorStack) -> PerItem | None:
        """By a mask of its own."""
        return Dropout(cast(Tensor, self._own(stack).loc), self.rate)

    def has_density(self, stack: FactorStack) -> bool:
        """It has atoms instead."""
        return False

    def _set_location(self, stack: FactorStack, latent: Tensor) -> None:
        with torch.no_grad():
            cast(Tensor, self._own(stack).loc).copy_(latent)
