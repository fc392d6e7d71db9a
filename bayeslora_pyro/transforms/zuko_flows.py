"""Flows of the optional package Zuko.

`pyro.contrib.zuko` wraps a whole Zuko distribution, base and all, and keeps every draw it ever scored. Here
the transform alone is taken, so that a guide keeps its own base distribution and stacks its copies.

Left out are the flows whose inverse or log-det is an approximation (continuous flows, by an ODE; UNAF and
sums of squares, by quadrature), circular splines, which are no flows of R^d, and couplings, which
`affine_coupling` and `spline_coupling` are. What fits one may still be passed, by :func:`from_zuko`.
"""

# Pyro and torch.distributions are untyped, and Zuko may be missing.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, cast

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from .traits import OneWay, Vmappable

__all__ = ["ZukoNeural", "ZukoTransform", "from_zuko", "zuko_maf", "zuko_naf", "zuko_nsf"]


def zuko_maf(dim: int, hidden_dims: Sequence[int] = (16, 16)) -> ZukoTransform:
    r"""Zuko's masked autoregressive flow, from base to latent in one pass.

    .. math:: y_j = \exp(s_j(x_{<j})) \, x_j + m_j(x_{<j})

    Its inverse takes `dim` passes. The order of the coordinates is drawn at random.

    Args:
        dim: The number of dimensions, at least 2.
        hidden_dims: The hidden sizes of the network.

    Returns:
        The flow, at the identity.

    Raises:
        ImportError: If Zuko is not installed.
        ValueError: If `dim` is less than 2.

    References:
        | Masked Autoregressive Flow for Density Estimation (Papamakarios et al., 2017)
        | https://arxiv.org/abs/1705.07057
    """
    return _Vmapped(_step("zuko_maf", "MAF", dim, hidden_dims, from_zero=True))


def zuko_nsf(dim: int, hidden_dims: Sequence[int] = (16, 16), *, num_bins: int = 8) -> ZukoTransform:
    r"""Zuko's neural spline flow: a monotone rational-quadratic spline per coordinate, given those before it.

    .. math:: y_j = f_{x_{<j}}(x_j)

    Outside `[-5, 5]` it is the identity. Its inverse takes `dim` passes. The order of the coordinates is drawn
    at random.

    Args:
        dim: The number of dimensions, at least 2.
        hidden_dims: The hidden sizes of the network.
        num_bins: The number of bins per spline.

    Returns:
        The flow, at the identity.

    Raises:
        ImportError: If Zuko is not installed.
        ValueError: If `dim` is less than 2.

    References:
        | Neural Spline Flows (Durkan et al., 2019)
        | https://arxiv.org/abs/1906.04032
    """
    return _Vmapped(_step("zuko_nsf", "NSF", dim, hidden_dims, from_zero=True, bins=num_bins))


def zuko_naf(dim: int, hidden_dims: Sequence[int] = (16, 16)) -> ZukoNeural:
    r"""Zuko's neural autoregressive flow: a monotone network per coordinate, given those before it.

    It starts at random, not at the identity. Zuko inverts it by bisection, to about 1e-6 and within
    `[-10, 10]` only; here the density is known for its own draws only. The order of the coordinates is drawn
    at random.

    Args:
        dim: The number of dimensions, at least 2.
        hidden_dims: The hidden sizes of the conditioner and of the monotone networks.

    Returns:
        The flow.

    Raises:
        ImportError: If Zuko is not installed.
        ValueError: If `dim` is less than 2.

    References:
        | Neural Autoregressive Flows (Huang et al., 2018)
        | https://arxiv.org/abs/1804.00779
    """
    network = {"hidden_features": tuple(hidden_dims)}
    return ZukoNeural(_step("zuko_naf", "NAF", dim, hidden_dims, from_zero=False, network=network))


def from_zuko(flow: Callable[..., Any], dim: int, **options: Any) -> ZukoTransform:
    """Make a transform of any flow of Zuko, for `partial(from_zuko, zuko.flows.BPF)`.

    Args:
        flow: A class of `zuko.flows`.
        dim: The number of dimensions.
        options: Further arguments of that class.

    Returns:
        Its transform, from base to latent; it starts where Zuko starts it.
    """
    return ZukoTransform(flow(dim, **options).transform)


class ZukoTransform(TransformModule):
    """A lazy transform of Zuko as a module of Pyro.

    Args:
        lazy: The lazy transform, without context.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    _cached_ladj: Tensor

    def __init__(self, lazy: nn.Module) -> None:
        super().__init__(cache_size=1)
        self.lazy = lazy

    def _call(self, x: Tensor) -> Tensor:
        y, self._cached_ladj = self._value_and_ladj(x)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        x: Tensor = self.lazy().inv(y)
        _, self._cached_ladj = self._value_and_ladj(x)
        return x

    def _value_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value: Tensor
        value, ladj = self.lazy().call_and_ladj(x)
        # Some of Zuko's flows differentiate, and what they return remembers it even where gradients are off.
        return (value, ladj) if torch.is_grad_enabled() else (value.detach(), ladj.detach())

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-abs-det-Jacobian at x."""
        self(x)  # free where x is the last value seen
        return self._cached_ladj


class _Vmapped(Vmappable, ZukoTransform):
    pass


class ZukoNeural(OneWay, Vmappable, ZukoTransform):
    """An autoregressive step of Zuko through monotone networks.

    Zuko takes their slopes by `torch.autograd.grad`, which `torch.vmap` does not allow; here by `torch.func`.

    Args:
        lazy: The lazy autoregressive transform, without context.
    """

    def _value_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        monotone = self.lazy.meta(None, x).base.f  # type: ignore[operator]
        value, pull_back = cast(tuple[Tensor, Any], torch.func.vjp(monotone, x))
        (slopes,) = pull_back(torch.ones_like(value))
        return value, slopes.log().sum(-1)


def _step(
    name: str, flow: str, dim: int, hidden_dims: Sequence[int], *, from_zero: bool, **options: Any
) -> nn.Module:
    """Make one autoregressive step; at the identity, where that is what outputs of zero mean."""
    try:
        flows: Any = import_module("zuko").flows
    except ImportError as error:
        raise ImportError(
            f"{name} needs Zuko, which is not installed: pip install 'bayeslora-pyro[zuko]'"
        ) from error
    if dim < 2:
        raise ValueError(
            f"dim of {name} must be at least 2, got {dim}: for single columns use 'planar' or 'sylvester'"
        )
    made = getattr(flows, flow)(
        dim, transforms=1, randperm=True, hidden_features=tuple(hidden_dims), **options
    )
    (step,) = made.transform.transforms
    if from_zero:
        for parameter in step.hyper[-1].parameters():
            nn.init.zeros_(parameter)
    return step
