"""Flows made of flows: the inverse of one, and several in a row."""

# Pyro and torch.distributions are untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pyro.distributions.transforms as pyro_transforms
import torch
from pyro.distributions.torch_transform import ComposeTransformModule, TransformModule
from torch import Tensor
from torch.distributions import ComposeTransform, Transform, constraints

from ..types import TransformFactory
from .traits import Stackable

__all__ = ["Inverse", "Permutation", "composed", "iterated", "parts_of"]

_COUPLINGS = (pyro_transforms.AffineCoupling, pyro_transforms.SplineCoupling)


def composed(*factories: TransformFactory) -> TransformFactory:
    r"""Compose flows of several kinds, :math:`y = f_n(\cdots f_1(x))`.

    Args:
        factories: The flows, the first first.

    Returns:
        A factory of the composed flow.

    Raises:
        ValueError: If there is none.
    """
    if not factories:
        raise ValueError(
            "composed needs at least one factory, got none: for no flow, leave the transform out"
        )

    def compose(dim: int) -> Transform:
        return ComposeTransformModule([factory(dim) for factory in factories])

    return compose


def iterated(depth: int, factory: TransformFactory) -> TransformFactory:
    """Compose `depth` independent flows of one kind, which may be composed itself.

    Autoregressive flows draw their own order at each step. Flows with couplings, after the first, act in a fixed random
    order, each on what the one before held fixed; the order is undone after each step, so that the whole
    still starts at the identity.

    Args:
        depth: The number of steps, at least 1.
        factory: The flow to repeat.

    Returns:
        A factory of the composed flow.

    Raises:
        ValueError: If `depth` is less than 1.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}: for no flow, leave the transform out")

    def compose(dim: int) -> Transform:
        order = torch.arange(dim)
        parts: list[Transform] = []
        for step in range(depth):
            flow = factory(dim)
            if step > 0 and any(isinstance(part, _COUPLINGS) for part in parts_of(flow)):
                order = _swap_halves(order)
                parts += [Permutation(order), flow, Permutation(order.argsort())]
            else:
                parts.append(flow)
        return ComposeTransformModule(parts)

    return compose


def _swap_halves(order: Tensor) -> Tensor:
    # A plain shuffle may leave a coordinate fixed in every step.
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    return torch.cat([second[torch.randperm(len(second))], first[torch.randperm(len(first))]])


def parts_of(transform: Transform) -> Iterator[Transform]:
    """List the flows that a flow is made of, itself if it is simple."""
    if isinstance(transform, ComposeTransform):
        for part in transform.parts:
            yield from parts_of(part)
    elif isinstance(transform, Inverse):
        yield from parts_of(transform.transform)
    else:
        yield transform


class Permutation(Stackable, TransformModule):
    r"""A fixed reordering, :math:`y_j = x_{\pi(j)}`, with the permutation in a buffer.

    Pyro's `Permute` holds it in a plain attribute, which neither a checkpoint nor a stack would see.

    Args:
        permutation: The permutation, long integers of shape `(dim,)`.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    volume_preserving = True
    permutation: Tensor

    def __init__(self, permutation: Tensor) -> None:
        super().__init__(cache_size=1)
        self.register_buffer("permutation", permutation)

    def _call(self, x: Tensor) -> Tensor:
        return _reorder(x, self.permutation)

    def _inverse(self, y: Tensor) -> Tensor:
        return _reorder(y, self.permutation.argsort(-1))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Zero: a permutation keeps volumes."""
        return x.new_zeros(x.shape[:-1])


def _reorder(x: Tensor, index: Tensor) -> Tensor:
    # In a stack the index is (L, dim), the same for every row.
    return x.gather(-1, index.unsqueeze(-2).expand(x.shape) if x.dim() > 1 else index)


class Inverse(TransformModule):
    r"""The inverse :math:`f^{-1}` of a flow f as a module (`f.inv` is none and hides its parameters).

    Args:
        transform: The flow f, of vectors.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, transform: Transform) -> None:
        super().__init__(cache_size=1)
        self.transform = transform

    def _call(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.transform.inv(x))

    def _inverse(self, y: Tensor) -> Tensor:
        return cast(Tensor, self.transform(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Minus the log-abs-det-Jacobian of f at y."""
        return cast(Tensor, -self.transform.log_abs_det_jacobian(y, x))
