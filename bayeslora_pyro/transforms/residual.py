r"""Residual flows: x plus a few smooth bumps or ridges. None of them has an inverse in closed form."""

# Pyro and torch.distributions are untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

import math

import pyro.distributions.transforms as pyro_transforms
import torch
from torch import Tensor, nn

from .reflections import normals_of, reflect
from .traits import OneWay, Stackable, Vmappable

__all__ = ["Planar", "Radial", "Sylvester", "planar", "radial", "sylvester"]


def planar(dim: int) -> Planar:
    r"""Planar flow, one ridge.

    .. math:: y = x + \hat u \tanh(w \cdot x + b)

    The density is known for its own draws only.

    Args:
        dim: The number of dimensions.

    Returns:
        The flow, at the identity: w is a random unit vector, and u such that :math:`\hat u = 0`.

    References:
        | Variational Inference with Normalizing Flows (Rezende et al., 2015)
        | https://arxiv.org/abs/1505.05770
    """
    flow = Planar(dim)
    with torch.no_grad():
        nn.init.normal_(flow.w).div_(flow.w.norm())
        flow.u.copy_(math.log(math.expm1(1.0)) * flow.w)
    return flow


def radial(dim: int) -> Radial:
    r"""Radial flow, one centre.

    .. math:: y = x + \beta \, (x - x_0) / (\alpha + \|x - x_0\|)

    The density is known for its own draws only.

    Args:
        dim: The number of dimensions.

    Returns:
        The flow, at the identity: :math:`\beta = 0`.

    References:
        | Variational Inference with Normalizing Flows (Rezende et al., 2015)
        | https://arxiv.org/abs/1505.05770
    """
    flow = Radial(dim)
    with torch.no_grad():
        flow.beta_prime.copy_(flow.alpha_prime)
    return flow


def sylvester(dim: int, num_reflections: int | None = None) -> Sylvester:
    r"""Sylvester flow, `dim` ridges at once.

    .. math:: y = x + \tanh(x Q S^T + b) R^T Q^T

    Q is a product of Householder reflections; S and R are upper triangular. The density is known for its own
    draws only.

    Args:
        dim: The number of dimensions.
        num_reflections: The number of reflections in Q, from 1 to `dim`; `dim // 2 + 1` by default.

    Returns:
        The flow, at the identity: R = 0.

    Raises:
        ValueError: If `num_reflections` is out of range.

    References:
        | Sylvester Normalizing Flows for Variational Inference (van den Berg et al., 2018)
        | https://arxiv.org/abs/1803.05649
    """
    num_reflections = dim // 2 + 1 if num_reflections is None else num_reflections
    if not 1 <= num_reflections <= dim:
        raise ValueError(f"num_reflections must be from 1 to dim = {dim}, got {num_reflections}")
    flow = Sylvester(dim, num_reflections)
    with torch.no_grad():
        flow.R_dense.zero_()
        flow.R_diag.zero_()
        # Pyro's range of 0.01 would leave tanh, and with it the gradient of R, near zero.
        for parameter in (flow.S_dense, flow.S_diag, flow.b):
            nn.init.uniform_(parameter, -1.0 / math.sqrt(dim), 1.0 / math.sqrt(dim))
    return flow


class Planar(OneWay, Vmappable, pyro_transforms.Planar):
    """Pyro's planar flow."""


class Radial(OneWay, Vmappable, pyro_transforms.Radial):
    """Pyro's radial flow."""


class Sylvester(OneWay, Stackable, pyro_transforms.Sylvester):
    r"""Sylvester flow with the log-det that goes with its map.

    .. math:: \log |\det J| = \sum_i \log(1 + \tanh'_i \, S_{ii} R_{ii})

    Pyro 1.9 multiplies `Q R` and `S Q^T` in the order for column vectors, on row vectors: there this log-det
    holds at Q = I alone.
    """

    triangular_mask: Tensor

    def _call(self, x: Tensor) -> Tensor:
        normals = normals_of(self.u_unnormed)
        R_diag, S_diag = self.R_diag.tanh(), self.S_diag.tanh()
        R = self.R_dense * self.triangular_mask + R_diag.diag_embed()
        S = self.S_dense * self.triangular_mask + S_diag.diag_embed()
        ridges = torch.tanh(reflect(x, normals) @ S.mT + self.b.unsqueeze(-2))
        slopes = (1.0 - ridges.square()) * (S_diag * R_diag).unsqueeze(-2)
        self._cached_logDetJ = torch.log1p(slopes).sum(-1).reshape(x.shape[:-1])
        return (x + reflect(ridges @ R.mT, normals[::-1])).reshape(x.shape)
