"""A flow over whole matrices, all rows at once."""

# Pyro and torch.distributions are untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import constraints

from .remembering import RememberingTransform
from .stacked import StackedTransform

__all__ = ["MatrixTransform"]


class MatrixTransform(RememberingTransform):
    r"""A stack of flows of vectors as one of matrices, :math:`\operatorname{vec}(Y_l) = f_l(\operatorname{vec}(X_l))`.

    Values have shape `(..., L, rows, cols)`, log-dets `(..., L)`. So a flow can correlate the rows, which a
    :class:`StackedTransform` of `dim = cols` cannot; its networks see `rows * cols` inputs.

    Args:
        flow: The stack of flows, of `rows * cols` dimensions.
        shape: The shape `(rows, cols)`.

    Raises:
        ValueError: If the flow is one of another number of dimensions.
    """

    domain = constraints.independent(constraints.real, 2)
    codomain = constraints.independent(constraints.real, 2)

    def __init__(self, flow: StackedTransform, shape: tuple[int, int]) -> None:
        super().__init__()
        rows, cols = shape
        if flow.dim != rows * cols:
            raise ValueError(
                f"the flow must have as many dimensions as a matrix of shape {(rows, cols)} has entries, "
                f"{rows * cols}, and has {flow.dim}"
            )
        self.flow = flow
        self.shape = (rows, cols)

    @property
    def invertible(self) -> bool:  # type: ignore[override]
        """Whether the flow has an inverse in closed form."""
        return self.flow.invertible

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Check that a shape is `(..., L, rows, cols)`, and return it."""
        if len(shape) < 3 or tuple(shape[-3:]) != (self.flow.num_factors, *self.shape):
            expected = ", ".join(str(size) for size in (self.flow.num_factors, *self.shape))
            raise ValueError(f"the value must have shape (..., {expected}), got {tuple(shape)}")
        return shape

    def _run(self, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        self.forward_shape(value.shape)
        mapped, ladj = self.flow._run(value.flatten(-2).unsqueeze(-2), inverse)
        return mapped.reshape(value.shape), ladj.squeeze(-1)
