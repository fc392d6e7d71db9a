"""Noise whose size is relative to the factor that it is added to."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl

__all__ = ["RelativeNoise"]


class RelativeNoise(TorchDistribution):
    r"""How factors that are Gaussian relative to a point are distributed, for each of L factors :math:`A`.

    .. math:: W_{ij} \sim \mathcal{N}(m A_{ij}, \alpha A_{ij}^2)

    A sample is always the pair :math:`(m, \alpha)`: the noise itself is drawn where the factor is applied. Its
    divergence from another is that of the factors, and does not depend on A,

    .. math:: \mathrm{KL} = \frac n2 \sum_l \Big[\frac{\alpha_l + (m_l - m'_l)^2}{\alpha'_l} - 1
        - \ln \frac{\alpha_l}{\alpha'_l}\Big]

    with n the number of entries of a factor, or 1 for its mean over them.

    Args:
        pair: The :math:`m` and the :math:`\alpha > 0` of each factor. Shape `(..., L, 2)`.
        size: The number n; that of the second distribution counts.
        aggregate: Whether, as the second distribution, its pair is that of the first with :math:`\alpha` averaged over
            the first dimension, the items of a batch.
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "pair": constraints.independent(constraints.real, 2)
    }
    support = constraints.independent(constraints.real, 2)
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
        """Zero at the pairs and `-inf` elsewhere, as of a point. Shape `(...)`."""
        return (value == self.pair).all(-1).all(-1).to(self.pair.dtype).log()

    def expand(self, batch_shape: Any, _instance: Any = None) -> RelativeNoise:
        """The same distribution over a larger batch."""
        new = self._get_checked_instance(RelativeNoise, _instance)  # type: ignore[no-untyped-call]
        new.pair = self.pair.expand(*batch_shape, *self.event_shape)
        new.size, new.aggregate = self.size, self.aggregate
        TorchDistribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new


@register_kl(RelativeNoise, RelativeNoise)  # type: ignore[untyped-decorator]
def _kl_relative_noise(q: RelativeNoise, p: RelativeNoise) -> Tensor:
    (mean, variance), (other_mean, other_variance) = q.pair.unbind(-1), p.pair.unbind(-1)
    if p.aggregate:
        other_mean, other_variance = mean, variance.mean(0, keepdim=True)
    ratio = variance / other_variance
    shift = (mean - other_mean).square() / other_variance
    return p.size / 2 * (ratio + shift - 1 - ratio.log()).sum(-1)
