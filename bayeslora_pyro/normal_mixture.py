"""Mixtures of Gaussian matrices, with draws that are differentiable in every parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import _standard_normal

__all__ = ["NormalMixture"]


class NormalMixture(TorchDistribution):
    r"""A mixture of matrices with independent normal entries.

    .. math::
        q(V) = \sum_k \pi_k q_k(V), \qquad q_k(V) = \prod_{ij} \mathcal{N}(V_{ij}; m_{k,ij}, s_{k,ij}^2),
        \qquad \pi = \mathrm{softmax}(\alpha)

    A draw selects a component, and its derivatives are those of a flow of probability that keeps pace with the
    density: the selection itself is never differentiated. A parameter :math:`\theta` moves a draw with the velocity
    :math:`v` that solves :math:`\partial_\theta q + \nabla \cdot (q v) = 0`, so that
    :math:`\nabla_\theta \mathbb{E}_q f = \mathbb{E}_q[v \cdot \nabla f]` holds exactly:

    .. math::
        v(m_k) = r_k, \quad v(s_k) = r_k \frac{V - m_k}{s_k}, \quad
        v(\alpha_k) = \sum_j \pi_j \pi_k \int_0^1 \frac{q_t(V)}{q(V)}
        \Big(\dot m_t + \dot s_t \frac{V - m_t}{s_t}\Big) dt

    with the responsibilities :math:`r_k = \pi_k q_k(V) / q(V)`, and :math:`q_t` the normals on the straight way from
    component :math:`j` (t = 0) to :math:`k` (t = 1). The integral is estimated at one uniform `t` and its mirror
    image `1 - t`. All is unbiased. The derivatives in centres and scales have a low variance; those in the weights
    come from draws between the components, and are rare where components are many deviations apart.

    Args:
        loc: The centres :math:`m_k`. Shape `(..., K, m, n)`.
        scale: The standard deviations :math:`s_k`. Shape `(..., K, m, n)`.
        logits: The unnormalised log-weights :math:`\alpha`. Shape `(..., K)`.

    Raises:
        ValueError: If the shapes do not fit.

    References:
        | Pathwise Derivatives for Multivariate Distributions (Jankowiak and Karaletsos, 2018)
        | https://arxiv.org/abs/1806.01856
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {  # pyright: ignore
        "loc": constraints.real,
        "scale": constraints.positive,
        "logits": constraints.real_vector,
    }
    support = constraints.independent(constraints.real, 2)  # pyright: ignore
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, logits: Tensor, validate_args: bool | None = None) -> None:
        if loc.shape != scale.shape or loc.dim() < 3 or loc.shape[:-2] != logits.shape:
            raise ValueError(
                f"loc has shape {tuple(loc.shape)}, scale {tuple(scale.shape)} and logits {tuple(logits.shape)}: they "
                "should be (..., K, m, n) twice, and (..., K)."
            )
        self.loc, self.scale, self.logits = loc, scale, logits
        super().__init__(logits.shape[:-1], loc.shape[-2:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: NormalMixture | None = None) -> NormalMixture:
        """Broadcasts the batch shape; the parameters stay as they are and broadcast when used."""
        new: NormalMixture = self._get_checked_instance(NormalMixture, _instance)  # type: ignore[no-untyped-call]
        for name in ("loc", "scale", "logits"):
            setattr(new, name, getattr(self, name))
        super(NormalMixture, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def log_weights(self) -> Tensor:
        r"""The log-weights :math:`\log \pi`. Shape `(..., K)`."""
        return self.logits.log_softmax(-1)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Draws matrices. Shape `(*sample_shape, *batch_shape, m, n)`."""
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            weights = self.log_weights.exp().expand(*shape, -1)
            chosen = torch.multinomial(weights.reshape(-1, weights.shape[-1]), 1).reshape(*shape, 1, 1, 1)
            loc, scale = (
                part.expand(*shape, *part.shape[-3:]).take_along_dim(chosen, -3).squeeze(-3)
                for part in (self.loc, self.scale)
            )
            value = loc + scale * _standard_normal(shape + self.event_shape, loc.dtype, loc.device)
            time = torch.rand(shape, dtype=loc.dtype, device=loc.device)
        return self.attach(value, time) if torch.is_grad_enabled() else value

    def attach(self, value: Tensor, time: Tensor) -> Tensor:
        """Gives drawn values their derivatives in the parameters.

        Args:
            value: The values. Shape `(..., m, n)`.
            time: Where between the components to take the flow of probability, from 0 to 1. Shape `(...)`.
        """
        with torch.no_grad():
            responsibilities = self._responsibilities(value)[..., None, None]
            noise = (value.unsqueeze(-3) - self.loc) / self.scale
            velocity = self._velocity_of_logits(value, time)
        moving = (responsibilities * (self.loc + self.scale * noise)).sum(-3)
        moving = moving + (self.logits[..., None, None] * velocity).sum(-3)
        return value + (moving - moving.detach())

    def _responsibilities(self, value: Tensor) -> Tensor:
        """The probability that a value came from each component. Shape `(..., K)`."""
        joint = self.log_weights + _log_normal(value.unsqueeze(-3), self.loc, self.scale)
        return joint.softmax(-1)

    def _velocity_of_logits(self, value: Tensor, time: Tensor) -> Tensor:
        """The velocity of a value as each logit grows: from all components to its own. Shape `(..., K, m, n)`."""
        here = value[..., None, None, :, :]
        (loc, loc_speed), (scale, scale_speed) = (
            _way(ends, time[..., None, None, None, None]) for ends in (self.loc, self.scale)
        )
        weights = self.log_weights.unsqueeze(-1) + self.log_weights.unsqueeze(-2)
        density = weights + _log_normal(here, loc, scale) - self.log_prob(value)[..., None, None]
        speed = loc_speed + scale_speed * (here - loc) / scale
        flow = density.exp()[..., None, None] * speed  # (..., from, to, m, n)
        return 0.5 * (flow - flow.transpose(-3, -4)).sum(-4)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Computes the density of the whole mixture, :math:`\log \sum_k \pi_k q_k(V)`.

        Args:
            value: The matrices. Shape `(..., m, n)`.
        """
        if self._validate_args:
            self._validate_sample(value)
        joint = self.log_weights + _log_normal(value.unsqueeze(-3), self.loc, self.scale)
        return joint.logsumexp(-1)

    @property
    def mean(self) -> Tensor:
        r"""The mean :math:`\sum_k \pi_k m_k`. Shape `(*batch_shape, m, n)`."""
        return self._average(self.loc)

    @property
    def variance(self) -> Tensor:
        """The variance of each entry, within and between components. Shape `(*batch_shape, m, n)`."""
        centred = self.loc - self._average(self.loc).unsqueeze(-3)
        return self._average(self.scale.square() + centred.square())

    def _average(self, values: Tensor) -> Tensor:
        average = (self.log_weights.exp()[..., None, None] * values).sum(-3)
        return average.expand(self.batch_shape + self.event_shape)


def _log_normal(value: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """The log-density of independent normal entries of matrices. Shapes `(..., m, n)` to `(...)`."""
    size = math.prod(loc.shape[-2:])
    quadratic = ((value - loc) / scale).square().sum((-2, -1))
    return -0.5 * (quadratic + size * math.log(2 * math.pi)) - scale.log().sum((-2, -1))


def _way(ends: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """The straight way from each component to each at a time, and its speed. Shapes `(..., from, to, m, n)`."""
    start, end = ends.unsqueeze(-3), ends.unsqueeze(-4)
    return torch.lerp(start, end, time), end - start
