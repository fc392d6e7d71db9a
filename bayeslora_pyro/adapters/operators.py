"""Operators: what a slot applies to activations in the place of a LoRA factor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from bayeslora_pyro.types import Weights

__all__ = [
    "FlipoutOperator",
    "Flips",
    "LinearOperator",
    "Operator",
    "draw_flips",
    "make_operators",
    "varying",
]


class Operator(Protocol):
    """What a slot applies in the place of a LoRA factor."""

    @property
    def weight(self) -> Tensor:
        """A tensor of the dtype in which the operator works; PEFT casts its inputs to it."""
        ...

    def __call__(self, inputs: Tensor) -> Tensor:
        """Maps activations `(items, ..., in)` to `(items, ..., out)`."""
        ...


class LinearOperator:
    """Applies one weight to the whole batch, or S weights to its S tiles in one batched product.

    Args:
        weight: The factor, shape `(out, in)`, or one per tile, shape `(S, out, in)`.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, inputs: Tensor) -> Tensor:
        """Maps activations `(S * items, ..., in)` to `(S * items, ..., out)`."""
        inputs = inputs.to(self.weight.dtype)
        num_tiles = self.weight.shape[0] if self.weight.dim() == 3 else 1
        if num_tiles == 1:  # as PEFT does it; a batched product of one would run on one thread
            return nn.functional.linear(inputs, self.weight.reshape(self.weight.shape[-2:]))
        outputs = torch.bmm(inputs.reshape(num_tiles, -1, inputs.shape[-1]), self.weight.mT)
        return outputs.reshape(*inputs.shape[:-1], outputs.shape[-1])


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
        if inputs.shape[0] != rows:
            raise ValueError(
                f"flipout=True needs activations with one entry for each of the {rows} rows of the batch, and an "
                f"adapted module has activations of shape {tuple(inputs.shape)}: fit with flipout=False, or leave the "
                "module out of target_modules."
            )
        inputs = inputs.to(self.weight.dtype)
        between = (1,) * (inputs.dim() - 2)
        out_signs, in_signs = (
            signs.reshape(rows, *between, -1) for signs in (self._out_signs, self._in_signs)
        )
        return self._mean(inputs) + self._deviation(inputs * in_signs) * out_signs


@dataclass(frozen=True)
class Flips:
    """What :class:`FlipoutOperator` needs beside draws, for all L factors of a stack.

    Args:
        centre: The means. Shape `(L, d_o, d_i)`.
        out_signs: The signs of the outputs. Shape `(L, rows, d_o)`.
        in_signs: The signs of the inputs. Shape `(L, rows, d_i)`.
    """

    centre: Tensor
    out_signs: Tensor
    in_signs: Tensor


def draw_flips(centres: Weights, item_of_row: Tensor) -> dict[str, Flips]:
    """Draws signs from torch's generator, independent over factors and items, alike for the rows of one item.

    Args:
        centres: The means of the stacks that are flipped, by name. Shapes `(L, d_o, d_i)`.
        item_of_row: The item of each row of the batch, counted from 0. Shape `(rows,)`.

    Returns:
        The flips by stack name.
    """
    num_items = int(item_of_row.max()) + 1
    flips = {}
    for name, centre in centres.items():
        length, *sizes = centre.shape
        out_signs, in_signs = (
            _signs((length, num_items, size), centre)[:, item_of_row.to(centre.device)] for size in sizes
        )
        flips[name] = Flips(centre, out_signs, in_signs)
    return flips


def _signs(shape: Sequence[int], like: Tensor) -> Tensor:
    """Draws 1 or -1, each with probability one half, with the dtype and the device of another tensor."""
    return torch.randint(2, tuple(shape), dtype=like.dtype, device=like.device) * 2 - 1


def varying(weights: Weights) -> dict[str, list[bool]]:
    """Tells which factors differ between draws, by stack name.

    Args:
        weights: The factors by stack name. Shapes `(S, L, d_o, d_i)`.
    """
    return {
        name: (values[1:] != values[:1]).flatten(2).any(-1).any(0).tolist()
        for name, values in weights.items()
    }


def make_operators(
    weights: Weights,
    flips: Mapping[str, Flips] | None = None,
    random: Mapping[str, Sequence[bool]] | None = None,
) -> dict[str, list[Operator]]:
    """Makes the operators of the factors of each stack, in their order.

    Args:
        weights: The factors by stack name. Shapes `(L, d_o, d_i)`, or `(S, L, d_o, d_i)`.
        flips: The signs of the stacks that are flipped, by name.
        random: Which factors differ between the S draws, by stack name, as :func:`varying` tells; the others are
            applied to all tiles at once. By default all.
    """
    flips, random = flips or {}, random or {}
    return {
        name: _flipped(values, flips[name])
        if name in flips
        else [
            LinearOperator(value if differs else value[0])
            for value, differs in zip(
                values.unbind(-3), random.get(name, [True] * values.shape[-3]), strict=True
            )
        ]
        for name, values in weights.items()
    }


def _flipped(values: Tensor, flips: Flips) -> list[Operator]:
    deviations = (values - flips.centre).unbind(-3)
    parts = zip(flips.centre, deviations, flips.out_signs, flips.in_signs, strict=True)
    return [FlipoutOperator(*part) for part in parts]
