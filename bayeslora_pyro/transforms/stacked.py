"""Independent copies of a flow, one per LoRA factor, run as one transform."""

# Pyro and torch.distributions are untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

from typing import cast

import pyro.distributions.transforms as pyro_transforms
import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from ..types import TransformFactory
from .composition import parts_of
from .copies import Copies, draw_copies, stack_copies
from .remembering import RememberingTransform
from .traits import OneWay

__all__ = ["StackedTransform"]

_ONE_WAY = (
    OneWay,
    pyro_transforms.BlockAutoregressive,
    pyro_transforms.NeuralAutoregressive,
    pyro_transforms.Planar,
    pyro_transforms.Polynomial,
    pyro_transforms.Radial,
    pyro_transforms.Sylvester,
)


class StackedTransform(RememberingTransform):
    r"""L independent copies of a flow, one per factor, as one transform.

    .. math:: y_{\ldots l i} = f_l(x_{\ldots l i}), \qquad l = 1 \ldots L, \quad i = 1 \ldots \text{rows}

    Values have shape `(..., L, rows, dim)`, log-dets `(..., L, rows)`: all rows of a factor go through one
    flow, and no two factors share a parameter. Parameters and buffers (masks, orders) are those of one copy
    with a leading dimension L: optimizers and checkpoints see ordinary tensors, and a stack that loads the
    state of another becomes that other, whatever its seed was.

    Args:
        factory: The flow, from the number of dimensions to a transform of vectors.
        num_factors: The number of copies L.
        dim: The number of dimensions of each row.
        seed: Where the first parameters and orders of the copies come from; the global generator stays as it
            was.
        vectorize: Whether all copies run at once, in batched kernels or under `torch.vmap`, and not one by
            one. The numbers are the same. By default, where a part of the flow is known to allow it.

    Raises:
        ValueError: If `num_factors` is less than 1, or if the flow is not one of vectors or keeps state
            elsewhere than in parameters and buffers.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(
        self,
        factory: TransformFactory,
        num_factors: int,
        dim: int,
        *,
        seed: int = 0,
        vectorize: bool | None = None,
    ) -> None:
        super().__init__()
        if num_factors < 1:
            raise ValueError(f"num_factors must be at least 1, got {num_factors}: leave empty stacks out")
        self.num_factors = num_factors
        self.dim = dim
        self.copies = Copies(self._draw_transform(factory, seed), vectorize)
        parts = parts_of(self.copies.transform)
        self.invertible = not any(isinstance(part, _ONE_WAY) for part in parts)

    def _draw_transform(self, factory: TransformFactory, seed: int) -> Transform:
        return stack_copies(draw_copies(factory, self.num_factors, self.dim, seed))

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Check that a shape is `(..., L, rows, dim)`, and return it."""
        if len(shape) < 3 or shape[-3] != self.num_factors or shape[-1] != self.dim:
            raise ValueError(
                f"the value must have shape (..., {self.num_factors}, rows, {self.dim}), got {tuple(shape)}: "
                "put the factors third from last, as the last batch dimension"
            )
        return shape

    def _run(self, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        self.forward_shape(value.shape)
        return cast(tuple[Tensor, Tensor], self.copies(value, inverse))
