"""Spline flows: a monotone rational spline per coordinate, on its own or given the coordinates before it."""

# Pyro and torch.distributions are untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import pyro.distributions.transforms as pyro_transforms
import torch
from pyro.distributions.torch_transform import TransformModule
from pyro.distributions.transforms import ConditionalSpline
from pyro.distributions.transforms.spline import ConditionedSpline
from torch import Tensor
from torch.distributions import constraints

from .autoregressive import check_sizes
from .networks import StackableAutoRegressiveNN, StackableDenseNN, last_layer, zero_last_layer
from .traits import Stackable

__all__ = [
    "ElementwiseSpline",
    "NetworkSpline",
    "Spline",
    "SplineAutoregressive",
    "spline",
    "spline_autoregressive",
    "start_at_identity",
]


def spline(dim: int, *, num_bins: int = 4, bound: float = 3.0) -> Spline:
    r"""Elementwise spline: a monotone rational spline per coordinate, :math:`y_j = f_j(x_j)`.

    Both directions take one pass. Outside `[-bound, bound]` it is the identity. It leaves independent
    coordinates independent: compose it with a flow that mixes them.

    Args:
        dim: The number of dimensions.
        num_bins: The number of bins per spline.
        bound: Half the width of the interval on which the splines act.

    Returns:
        The flow, at the identity.

    References:
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032
        | Invertible Generative Modeling using Linear Rational Splines (Dolatabadi et al., 2020)
        | https://arxiv.org/abs/2001.05168
    """
    return Spline(dim, num_bins, bound)


def spline_autoregressive(
    dim: int, hidden_dims: Sequence[int] | None = None, *, num_bins: int = 4, bound: float = 3.0
) -> SplineAutoregressive:
    r"""Spline autoregressive flow: a monotone rational spline per coordinate, given those before it.

    .. math:: y_j = f_{x_{<j}}(x_j)

    The forward map is one parallel pass through a masked network; its inverse takes `dim` passes. Outside
    `[-bound, bound]` it is the identity. The order of the coordinates is drawn at random.

    Args:
        dim: The number of dimensions, at least 2.
        hidden_dims: The hidden sizes of the network, none below `dim`; two of `max(16, dim)` by default.
        num_bins: The number of bins per spline.
        bound: Half the width of the interval on which the splines act.

    Returns:
        The flow, at the identity.

    Raises:
        ValueError: If `dim` or one of `hidden_dims` is too small.

    References:
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032
        | Invertible Generative Modeling using Linear Rational Splines (Dolatabadi et al., 2020)
        | https://arxiv.org/abs/2001.05168
    """
    hidden_dims = check_sizes("spline_autoregressive", dim, hidden_dims)
    param_dims = (num_bins, num_bins, num_bins - 1, num_bins)
    network = StackableAutoRegressiveNN(dim, hidden_dims, param_dims=param_dims)
    start_at_identity(network, [slice(dim * s.start, dim * s.stop) for s in network.param_slices])
    return SplineAutoregressive(network, dim, num_bins=num_bins, bound=bound)


UNIT_SLOPE = math.log(math.expm1(1.0))  # softplus of it is 1


def start_at_identity(network: StackableAutoRegressiveNN | StackableDenseNN, slices: Sequence[slice]) -> None:
    """Make a network give the parameters of the identity, of which the third kind are slopes.

    Args:
        network: The network.
        slices: Where each kind of parameter stands among the outputs.
    """
    zero_last_layer(network)
    with torch.no_grad():
        last_layer(network).bias[slices[2]] = UNIT_SLOPE


class _UnitEnds:
    """A spline of slope 1 at both ends. Pyro's 0.999 there leaves no way to the identity."""

    def spline_op(self, x: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        parent = cast(ConditionedSpline, super())
        return cast(tuple[Tensor, Tensor], parent.spline_op(x, min_derivative=0.0, **kwargs))


class ElementwiseSpline(_UnitEnds, pyro_transforms.Spline):
    """Pyro's spline, at the identity, whose parameters may be stacked; its log-det is by coordinate.

    Args:
        dim: The number of dimensions.
        num_bins: The number of bins per spline.
        bound: Half the width of the interval on which the splines act.
    """

    def __init__(self, dim: int, num_bins: int, bound: float) -> None:
        super().__init__(dim, num_bins, bound)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            self.unnormalized_derivatives.fill_(UNIT_SLOPE)

    def _params(self) -> Any:
        # In a stack the parameters are (L, dim, bins), the same for every row.
        return tuple(p.unsqueeze(-3) if p is not None and p.dim() > 2 else p for p in super()._params())


class Spline(Stackable, ElementwiseSpline):
    """A spline per coordinate, as a transform of vectors.

    Args:
        dim: The number of dimensions.
        num_bins: The number of bins per spline.
        bound: Half the width of the interval on which the splines act.
    """

    domain = constraints.real_vector  # type: ignore[assignment]
    codomain = constraints.real_vector  # type: ignore[assignment]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-abs-det-Jacobian at x."""
        return cast(Tensor, super().log_abs_det_jacobian(x, y)).sum(-1)


class _ConditionedSpline(_UnitEnds, ConditionedSpline):
    pass


class NetworkSpline(ConditionalSpline):
    """Pyro's spline whose parameters a network gives, able to be the identity."""

    def condition(self, context: Tensor) -> ConditionedSpline:
        """The spline at a value of the input of the network."""
        return _ConditionedSpline(partial(self._params, context), bound=self.bound, order=self.order)


class SplineAutoregressive(Stackable, TransformModule):
    """A spline per coordinate whose parameters a masked network gives.

    Args:
        network: The network.
        dim: The number of dimensions.
        num_bins: The number of bins per spline.
        bound: Half the width of the interval on which the splines act.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    _cached_ladj: Tensor

    def __init__(self, network: StackableAutoRegressiveNN, dim: int, *, num_bins: int, bound: float) -> None:
        super().__init__(cache_size=1)
        self.spline = NetworkSpline(network, dim, num_bins, bound)

    def _call(self, x: Tensor) -> Tensor:
        y, ladj = self.spline.condition(x).spline_op(x)
        self._cached_ladj = ladj.sum(-1)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x, ladj = torch.zeros_like(y), torch.zeros_like(y)
        for _ in range(y.shape[-1]):  # each pass settles one more coordinate of the order
            x, ladj = self.spline.condition(x).spline_op(y, inverse=True)
        self._cached_ladj = -ladj.sum(-1)
        return x

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-abs-det-Jacobian at x."""
        self(x)  # free where x is the last value seen
        return self._cached_ladj
