"""Noise whose size is relative to the factor that it is added to."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl

__all__ = ["RelativeNoise"]


_PAIR = constraints.independent(constraints.stack([constraints.real, constraints.positive], dim=-1), 1)


class RelativeNoise(TorchDistribution):
    r"""How factors that are Gaussian relative to a point are distributed, for each of L factors :math:`A`.

    .. math:: W_{ij} \sim \mathcal{N}(m A_{ij}, \alpha A_{ij}^2)

    A sample is always the pair :math:`(m, \alpha)`: the noise itself is drawn where the factor is applied. The
    divergence from another is that of the factors, which does not depend on A,

    .. math:: \mathrm{KL}(q \,\|\, q') = \frac n2 \sum_l \Big[\frac{\alpha_l + (m_l - m'_l)^2}{\alpha'_l} - 1
        - \ln \frac{\alpha_l}{\alpha'_l}\Big]

    with n the number of entries of a factor, or 1 for its mean over them. The "density" at a pair is the exponential of
    minus the divergence of these factors from its own, so that every estimate of an ELBO has it exactly.

    Args:
        pair: The :math:`m` and the :math:`\alpha > 0` of each factor. Shape `(..., L, 2)`.
        size: The number n; that of the second distribution counts.
        aggregate: Whether, as the second distribution, its pair is that of the first with :math:`\alpha` averaged over
            the first dimension, the items of a batch.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"pair": _PAIR}  # pyright: ignore
    support = _PAIR  # pyright: ignore
    has_rsample = True

    def __init__(
        self, pair: Tensor, size: int = 1, aggregate: bool = False, validate_args: bool | None = None
    ) -> None:
        self.pair, self.size, self.aggregate = pair, size, aggregate
        super().__init__(pair.shape[:-2], pair.shape[-2:], validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """The pairs."""
        return self.pair

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Returns the pairs. Shape `(*sample_shape, ..., L, 2)`."""
        return self.pair.expand(self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Minus the divergence of the factors with other pairs. Shape `(...)`."""
        return -self.divergence_of(value)

    def divergence_of(self, pair: Tensor) -> Tensor:
        """The divergence of the factors with other pairs, `(..., L, 2)`, from those with its own. Shape `(...)`."""
        (mean, variance), (own_mean, own_variance) = pair.unbind(-1), self.pair.unbind(-1)
        if self.aggregate:
            own_mean, own_variance = mean, variance.mean(0, keepdim=True)
        ratio = variance / own_variance
        shift = (mean - own_mean).square() / own_variance
        return self.size / 2 * (ratio + shift - 1 - ratio.log()).sum(-1)

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelativeNoise:
        """The same distribution over a larger batch."""
        new: Any = self._get_checked_instance(RelativeNoise, _instance)  # type: ignore[no-untyped-call]
        new.pair = self.pair.expand(*batch_shape, *self.event_shape)
        new.size, new.aggregate = self.size, self.aggregate
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new


@register_kl(RelativeNoise, RelativeNoise)  # type: ignore[untyped-decorator]
def _kl_relative_noise(q: RelativeNoise, p: RelativeNoise) -> Tensor:
    return p.divergence_of(q.pair)
