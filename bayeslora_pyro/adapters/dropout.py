"""Dropout: a factor whose inputs are dropped at random, with a mask of its own for each item."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora_pyro.adapters.operators import LinearOperator, check_rows

__all__ = ["Dropout", "DropoutOperator"]


class DropoutOperator:
    r"""Applies a factor with a mask of its own on the inputs of each row of the batch.

    .. math:: W_n = \frac{1}{1 - \rho} M\, \mathrm{diag}(z_n), \qquad
        W_n x = M \Big( \frac{z_n}{1 - \rho} \circ x \Big)

    All tokens of a row have one mask, so that a row sees one function; dropout layers draw a mask for each token.

    Args:
        weight: The factor M. Shape `(out, in)`.
        mask: What the inputs of each row are multiplied by, :math:`z_n / (1 - \rho)`. Shape `(rows, in)`.

    References:
        | Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning (Gal and Ghahramani,
          2016), Section 3
        | https://arxiv.org/abs/1506.02142
    """

    def __init__(self, weight: Tensor, mask: Tensor) -> None:
        self.weight = weight
        self._linear, self._mask = LinearOperator(weight), mask

    def __call__(self, inputs: Tensor) -> Tensor:
        """Maps activations `(rows, ..., in)` to `(rows, ..., out)`.

        Raises:
            ValueError: If the activations do not have one entry for each row of the batch.
        """
        rows, size = self._mask.shape
        check_rows(inputs, rows)
        mask = self._mask.reshape(rows, *(1 for _ in inputs.shape[1:-1]), size)
        return self._linear(inputs.to(self.weight.dtype) * mask)


@dataclass(frozen=True)
class Dropout:
    """Has each item see the factors with a mask of its own, alike for all its rows, independent over factors.

    Args:
        weight: The factors of which nothing is dropped. Shape `(L, d_o, d_i)`.
        rate: The share of inputs that are dropped.
    """

    weight: Tensor
    rate: float

    def operators(self, values: Tensor, item_of_row: Tensor) -> list[DropoutOperator]:
        """What applies each factor of the stack; see :class:`~bayeslora_pyro.adapters.PerItem`.

        The masks of `values` are of no account: those of the items are independent of them.
        """
        length, _, size = self.weight.shape
        items = item_of_row.to(self.weight.device)
        masks = _masks((length, int(items.max()) + 1, size), self.rate, self.weight)[:, items]
        return [DropoutOperator(*pair) for pair in zip(self.weight, masks, strict=True)]


def _masks(shape: tuple[int, ...], rate: float, like: Tensor) -> Tensor:
    """Draws 0, or what is kept is multiplied by, with the dtype and the device of another tensor."""
    return torch.bernoulli(like.new_full(shape, 1 - rate)) / (1 - rate)
