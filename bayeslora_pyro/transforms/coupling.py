"""Coupling flows: the first half of the coordinates decides how the second is mapped."""

# Pyro and torch.distributions are untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions.transforms as pyro_transforms

from .networks import StackableDenseNN, zero_last_layer
from .splines import ElementwiseSpline, NetworkSpline, start_at_identity
from .traits import Stackable

__all__ = ["AffineCoupling", "SplineCoupling", "affine_coupling", "spline_coupling"]


def affine_coupling(dim: int, hidden_dims: Sequence[int] = (16, 16)) -> AffineCoupling:
    r"""Affine coupling (RealNVP): the first half of x shifts and scales the second.

    .. math:: y_1 = x_1, \qquad y_2 = \exp(s(x_1)) \odot x_2 + m(x_1)

    Both directions take one pass. One coupling leaves half the coordinates alone: use it `iterated`.

    Args:
        dim: The number of dimensions, at least 2.
        hidden_dims: The hidden sizes of the network.

    Returns:
        The flow, at the identity.

    Raises:
        ValueError: If `dim` is less than 2.

    References:
        | Density Estimation using Real NVP (Dinh et al., 2017)
        | https://arxiv.org/abs/1605.08803
    """
    split = _split("affine_coupling", dim)
    network = StackableDenseNN(split, hidden_dims, param_dims=(dim - split, dim - split))
    zero_last_layer(network)
    return AffineCoupling(split, network)


def spline_coupling(
    dim: int, hidden_dims: Sequence[int] = (16, 16), *, num_bins: int = 4, bound: float = 3.0
) -> SplineCoupling:
    r"""Spline coupling: a monotone rational spline per coordinate, those of the second half given the first.

    .. math:: y_1 = f(x_1), \qquad y_2 = g_{x_1}(x_2)

    Both directions take one pass. Outside `[-bound, bound]` it is the identity.

    Args:
        dim: The number of dimensions, at least 2.
        hidden_dims: The hidden sizes of the network.
        num_bins: The number of bins per spline.
        bound: Half the width of the interval on which the splines act.

    Returns:
        The flow, at the identity.

    Raises:
        ValueError: If `dim` is less than 2.

    References:
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032
        | Invertible Generative Modeling using Linear Rational Splines (Dolatabadi et al., 2020)
        | https://arxiv.org/abs/2001.05168
    """
    split = _split("spline_coupling", dim)
    sizes = [(dim - split) * count for count in (num_bins, num_bins, num_bins - 1, num_bins)]
    network = StackableDenseNN(split, hidden_dims, param_dims=sizes)
    flow = SplineCoupling(dim, split, network, num_bins=num_bins, bound=bound)
    start_at_identity(network, network.param_slices)
    return flow


def _split(name: str, dim: int) -> int:
    """Return the size of the first half."""
    if dim < 2:
        raise ValueError(
            f"dim of {name} must be at least 2, got {dim}: for single columns use 'planar' or 'sylvester'"
        )
    return dim // 2


class AffineCoupling(Stackable, pyro_transforms.AffineCoupling):
    """Pyro's affine coupling over a network that takes stacked parameters.

    Args:
        split: How many of the first coordinates condition the others.
        network: The network that gives the shift and the log-scale of the others.
    """

    def __init__(self, split: int, network: StackableDenseNN) -> None:
        super().__init__(split, network)


class SplineCoupling(Stackable, pyro_transforms.SplineCoupling):
    """Pyro's spline coupling, able to be the identity, over a network that takes stacked parameters.

    Args:
        dim: The number of dimensions.
        split: How many of the first coordinates condition the others.
        network: The network that gives the spline parameters of the others.
        num_bins: The number of bins per spline.
        bound: Half the width of the interval on which the splines act.
    """

    def __init__(
        self, dim: int, split: int, network: StackableDenseNN, *, num_bins: int, bound: float
    ) -> None:
        super().__init__(dim, split, network, num_bins, bound)
        self.lower_spline = ElementwiseSpline(split, num_bins, bound)
        self.upper_spline = NetworkSpline(network, dim - split, num_bins, bound)
