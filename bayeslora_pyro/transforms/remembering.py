"""Transforms that remember their last value with its log-det, for as long as their parameters stay."""

# Pyro and torch.distributions are untyped.
# mypy: allow-untyped-calls

from __future__ import annotations

from abc import abstractmethod
from typing import Any, cast

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor

__all__ = ["RememberingTransform"]

_MAX_ITERATIONS, _MIN_STEP = 1000, 1e-3


class RememberingTransform(TransformModule):
    """A transform given by one function, which maps and scores in one pass.

    Like Pyro's transforms, it remembers the last value with its log-det, so that the density of one's own
    draw costs no second pass. A draw made without gradients is scored without them. Changing
    a parameter in place makes it forget.
    """

    bijective = True
    invertible: bool
    _cached_ladj: Tensor

    def __init__(self) -> None:
        super().__init__(cache_size=1)
        self._cached_versions: tuple[int, ...] = ()

    @abstractmethod
    def _run(self, value: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
        """Map a value, with the log-det, always of the forward map."""

    @abstractmethod
    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Check a shape, and return it."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map a value to one of the same shape."""
        self._forget_if_changed()
        return cast(Tensor, super().__call__(x))

    def _inv_call(self, y: Tensor) -> Tensor:
        self._forget_if_changed()
        return cast(Tensor, super()._inv_call(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Log-abs-det-Jacobian at x."""
        self(x)  # free where x is the last value seen
        return self._cached_ladj

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Check a shape, and return it."""
        return self.forward_shape(shape)

    def preimage(self, y: Tensor) -> Tensor:
        r"""Find the x with f(x) = y, also where f has no inverse in closed form.

        There it is the limit of :math:`x \leftarrow x + s (y - f(x))`, with s halved whenever it leads away.

        Args:
            y: The value.

        Returns:
            The value x, without gradients; y itself, where f is the identity.

        Raises:
            ValueError: If no x is found.
        """
        y = y.detach()
        tolerance = 100 * torch.finfo(y.dtype).eps * max(1.0, y.abs().max().item())
        with torch.no_grad():
            x, step = y.clone(), 1.0
            residual = y - self._run(x, inverse=False)[0]  # what is remembered would prove nothing
            for _ in range(_MAX_ITERATIONS):
                if residual.abs().max() <= tolerance:
                    return x
                if step < _MIN_STEP:
                    break
                moved = self._run(y, inverse=True)[0] if self.invertible else x + step * residual
                left = y - self._run(moved, inverse=False)[0]
                if left.abs().max() < residual.abs().max():
                    x, residual = moved, left
                else:
                    step /= 2
        raise ValueError(
            "the flow does not reach the given value, or only by a way that was not found: "
            "choose a flow that starts at the identity, such as 'affine_autoregressive'"
        )

    def _call(self, x: Tensor) -> Tensor:
        y, self._cached_ladj = self._run(x, inverse=False)
        return y

    def _inverse(self, y: Tensor) -> Tensor:
        if not self.invertible:
            raise NotImplementedError(
                f"{self} has no inverse, so only its latest draw can be scored: "
                "score each draw before the next, or use a flow such as 'affine_autoregressive'"
            )
        x, self._cached_ladj = self._run(y, inverse=True)
        return x

    def _forget_if_changed(self) -> None:
        # An optimizer step or a loaded checkpoint raises the version of the tensors it writes to.
        versions = tuple(tensor._version for tensor in (*self.parameters(), *self.buffers()))
        if versions != self._cached_versions:
            self._cached_x_y = None, None
            self._cached_versions = versions

    def __getstate__(self) -> dict[str, Any]:
        # What is remembered holds a graph, which can be neither copied nor saved.
        state = {**super().__getstate__(), "_cached_x_y": (None, None)}
        state.pop("_cached_ladj", None)
        return state
