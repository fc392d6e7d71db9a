"""Flipout: the noise of a draw, with random signs of its own for each item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bayeslora_pyro.adapters.operators import LinearOperator, check_rows

__all__ = ["Flipout", "FlipoutOperator"]


class FlipoutOperator:
    r"""Applies a weight whose deviation from its mean has signs of its own for each row of the batch.

    .. math:: W_n = M + \Delta \circ s_n r_n^\top, \qquad W_n x = M x + s_n \circ \Delta\, (r_n \circ x)

    Where the entries of :math:`\Delta` are independent and symmetric, each :math:`W_n` is distributed as
    :math:`M + \Delta`, and with random signs those of two rows are uncorrelated. All tokens of a row see the same
    :math:`W_n`, one function; the paper and BLoB's release have signs for each vector, so for each token.

    Args:
        mean: The mean M of the factor. Shape `(out, in)`.
        deviation: The deviation :math:`\Delta` of a draw. Shape `(out, in)`, or `(S, out, in)` for S draws, each of
            which serves an equal part of the rows.
        out_signs: The signs s. Shape `(rows, out)`.
        in_signs: The signs r. Shape `(rows, in)`.

    References:
        | Flipout: Efficient Pseudo-Independent Weight Perturbations on Mini-Batches (Wen et al., 2018), Section 3
        | https://arxiv.org/abs/1803.04386
    """

    def __init__(self, mean: Tensor, deviation: Tensor, out_signs: Tensor, in_signs: Tensor) -> None:
        self.weight = mean
        self._mean, self._deviation = LinearOperator(mean), LinearOperator(deviation)
        self._out_signs, self._in_signs = out_signs, in_signs

    def __call__(self, inputs: Tensor) -> Tensor:
        """Maps activations `(rows, ..., in)` to `(rows, ..., out)`.

        Raises:
            ValueError: If the activations do not have one entry for each row of the batch.
        """
        rows = len(self._in_signs)
        check_rows(inputs, rows)
        inputs = inputs.to(self.weight.dtype)
        between = (1,) * (inputs.dim() - 2)
        out_signs, in_signs = (
            signs.reshape(rows, *between, -1) for signs in (self._out_signs, self._in_signs)
        )
        return self._mean(inputs) + self._deviation(inputs * in_signs) * out_signs


@dataclass(frozen=True)
class Flipout:
    """Has each item see the deviations of a draw from its means with signs of its own, alike for all its rows.

    Args:
        centre: What the entries of the factors are independent and symmetric about. Shape `(L, d_o, d_i)`.
    """

    centre: Tensor

    def operators(self, values: Tensor, item_of_row: Tensor) -> list[FlipoutOperator]:
        """What applies each factor of the stack; see :class:`~bayeslora_pyro.adapters.PerItem`."""
        length, *sizes = self.centre.shape
        items = item_of_row.to(self.centre.device)
        num_items = int(items.max()) + 1
        sides = (_signs((length, num_items, size), self.centre)[:, items] for size in sizes)
        parts = zip(self.centre, (values - self.centre).unbind(-3), *sides, strict=True)
        return [FlipoutOperator(*part) for part in parts]


def _signs(shape: Sequence[int], like: Tensor) -> Tensor:
    """Draws 1 or -1, each with probability one half, with the dtype and the device of another tensor."""
    return torch.randint(2, tuple(shape), dtype=like.dtype, device=like.device) * 2 - 1
