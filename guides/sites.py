"""The posterior of the sites above the latent one: hyper-sites and shared sites, entry by entry."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.abstract import AbstractPyroModule

__all__ = ["MeanFieldSite", "PointSite", "SitePosterior"]

INITIAL_SCALE = 0.1
"""The initial standard deviation of each entry, of its logarithm where it is positive."""


class SitePosterior(AbstractPyroModule):
    """The approximate posterior of one site, real-valued or positive.

    Args:
        prior: The prior of the site; where its support is positive, parameters are those of the logarithm.
        batch_shape: The batch shape of the site.
        generator: What a real-valued site draws its start from; a positive one starts at the median of its prior, or
            at the mean where the median is not known.
    """

    def __init__(
        self, prior: TorchDistribution, batch_shape: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.event_dim = prior.event_dim
        support: Any = prior.support
        self.positive = not bool(support.check(-torch.ones(prior.event_shape)).all())
        start = _centre(prior).log() if self.positive else _draw(prior, generator)
        self.loc = nn.Parameter(start.expand(*batch_shape, *prior.event_shape).clone())

    @abstractmethod
    def forward(self) -> TorchDistribution:
        """The distribution of the site."""

    @property
    def location(self) -> Tensor:
        """The value without noise, the median. Shape of the site."""
        location: Tensor = self.loc
        return location.exp() if self.positive else location


@final
class MeanFieldSite(SitePosterior):
    r"""Independent normal entries, log-normal ones where they are positive.

    .. math:: q(\eta_i) = \mathcal{N}(m_i, s_i^2) \quad\text{or}\quad q(\log \eta_i) = \mathcal{N}(m_i, s_i^2)
    """

    def __init__(
        self, prior: TorchDistribution, batch_shape: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__(prior, batch_shape, generator)
        self.log_scale = nn.Parameter(torch.full_like(self.loc, INITIAL_SCALE).log())

    def forward(self) -> TorchDistribution:
        """Independent entries."""
        family: Any = dist.LogNormal if self.positive else dist.Normal
        return family(self.loc, self.log_scale.exp()).to_event(self.event_dim)


@final
class PointSite(SitePosterior):
    """A point."""

    def forward(self) -> TorchDistribution:
        """A delta."""
        return dist.Delta(self.location, event_dim=self.event_dim)


def _centre(prior: TorchDistribution) -> Tensor:
    """The median of each entry where it has a closed form, else the mean."""
    entries = prior.base_dist if isinstance(prior, torch.distributions.Independent) else prior
    try:
        centre: Tensor = entries.icdf(torch.tensor(0.5))
    except NotImplementedError:
        centre = entries.mean
    return centre.detach()


def _draw(prior: TorchDistribution, generator: torch.Generator) -> Tensor:
    """Normal numbers with the mean and the standard deviations of the prior, from a generator of one's own."""
    white = torch.randn(prior.batch_shape + prior.event_shape, generator=generator)
    return (prior.mean + prior.stddev * white.to(prior.mean)).detach()
