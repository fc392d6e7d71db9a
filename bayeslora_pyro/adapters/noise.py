"""Factors with noise of their own for each item, applied to activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from bayeslora_pyro.adapters.operators import LinearOperator
from bayeslora_pyro.isolation import derive_seed

__all__ = ["FreshNoise", "KeyedNoise", "Noise", "NoiseScope", "NoisyOperator"]

NoiseScope: TypeAlias = Literal["token", "sequence", "weight"]
"""What sees one draw of the noise: a token, all tokens of an item, or all that its weights are applied to."""

TOLERANCE = 1e-12
"""What keeps the derivative of a standard deviation finite where an activation is zero."""

BLOCK = 16
"""For how many tokens noise is drawn at once."""


class Noise(Protocol):
    """White noise for the rows of a pass; a place is a factor."""

    def of_tokens(self, place: str, tokens: int, size: int, like: Tensor) -> Tensor:
        """Independent noise for each token of each row. Shape `(rows, tokens, size)`."""
        ...

    def of_items(self, place: str, sizes: Sequence[int], like: Tensor) -> Tensor:
        """Noise that is alike for the rows of one item. Shape `(rows, *sizes)`."""
        ...


class FreshNoise:
    """Noise from torch's generator.

    Args:
        item_of_row: The item of each row of the batch, counted from 0. Shape `(rows,)`.
    """

    def __init__(self, item_of_row: Tensor) -> None:
        self._item_of_row = item_of_row
        self._num_items = int(item_of_row.max()) + 1

    def of_tokens(self, place: str, tokens: int, size: int, like: Tensor) -> Tensor:
        """Independent noise for each token of each row. Shape `(rows, tokens, size)`."""
        shape = (len(self._item_of_row), tokens, size)
        return torch.randn(shape, dtype=like.dtype, device=like.device)

    def of_items(self, place: str, sizes: Sequence[int], like: Tensor) -> Tensor:
        """Noise that is alike for the rows of one item. Shape `(rows, *sizes)`."""
        noise = torch.randn((self._num_items, *sizes), dtype=like.dtype, device=like.device)
        return noise[self._item_of_row]


class KeyedNoise:
    """Noise that is a function of the seed, the draw, the item and its token, however items and draws share passes.

    Args:
        seed: The seed.
        draws: The draws, one for each tile of the batch.
        item_of_row: The item of each row of a tile, counted from 0. Shape `(rows,)`.
        first: The place of the first item in the data.
        mask: The real tokens, of which alone noise is a function. Shape `(rows, tokens)`.
    """

    def __init__(
        self, seed: int, draws: Sequence[int], item_of_row: Tensor, first: int = 0, mask: Tensor | None = None
    ) -> None:
        items = [first + item for item in item_of_row.tolist()]
        self._items, self._seed, self._draws = items, seed, list(draws)
        self._parts = [items[:row].count(item) for row, item in enumerate(items)]  # which of its item's rows
        self._positions = None if mask is None else (mask.long().cumsum(1) - 1).clamp(min=0)

    def of_tokens(self, place: str, tokens: int, size: int, like: Tensor) -> Tensor:
        """Independent noise for each token of each row. Shape `(draws * rows, tokens, size)`."""
        blocks = -(-tokens // BLOCK)
        noise = torch.stack(
            [
                self._draw(like, [(BLOCK, size)] * blocks, draw, item, place, part)[:tokens]
                for draw in self._draws
                for item, part in zip(self._items, self._parts, strict=True)
            ]
        ).to(like.device)
        positions = self._positions
        if positions is None or positions.shape[1] != tokens:
            return noise
        index = positions.repeat(len(self._draws), 1).unsqueeze(-1)
        return noise.gather(1, index.expand_as(noise).to(noise.device))

    def of_items(self, place: str, sizes: Sequence[int], like: Tensor) -> Tensor:
        """Noise that is alike for the rows of one item. Shape `(draws * rows, *sizes)`."""
        shape = (1, *sizes)
        rows = [self._draw(like, [shape], draw, item, place) for draw in self._draws for item in self._items]
        return torch.cat(rows).to(like.device)

    def _draw(
        self, like: Tensor, shapes: Sequence[tuple[int, ...]], draw: int, item: int, *key: int | str
    ) -> Tensor:
        """Draws blocks of one size, as what torch draws depends on how much it draws."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, "noise", draw, item, *key))
        return torch.cat([torch.randn(shape, generator=generator, dtype=like.dtype) for shape in shapes])


class NoisyOperator:
    r"""Applies a factor with Gaussian noise relative to its entries, of its own for each row of the batch.

    .. math:: W_n = m_n A + \sqrt{\alpha_n}\, A \circ E, \qquad E_{ij} \sim \mathcal{N}(0, 1)

    With the scope `"weight"` these weights are made. The others draw what they put out instead, in the space of ranks,

    .. math:: z = m_n A x + \sqrt{\alpha_n (A \circ A)(x \circ x)} \circ \epsilon, \qquad
        \epsilon \sim \mathcal{N}(0, I)

    which has the same law for any one x. Over the tokens of a row, the noise of `"token"` is independent, that of
    `"sequence"` has one :math:`\epsilon`, and only that of `"weight"` is the noise of one matrix. Noise is drawn once
    for activations of one shape: to run again, as gradient checkpointing does, meets the same numbers.

    Args:
        weight: The factor A. Shape `(out, in)`, or `(S, out, in)` for S tiles.
        pair: The :math:`m` and the :math:`\alpha` of each row of all tiles. Shape `(rows, 2)`.
        noise: The noise for these rows.
        place: Which factor this is, for the noise.
        scope: What sees one draw of the noise.

    References:
        | Variational Dropout and the Local Reparameterization Trick (Kingma et al., 2015), Section 2.3
        | https://arxiv.org/abs/1506.02557
    """

    def __init__(
        self, weight: Tensor, pair: Tensor, noise: Noise, place: str, scope: NoiseScope = "token"
    ) -> None:
        self.weight = weight
        self._mean, self._squares = LinearOperator(weight), LinearOperator(weight.square())
        self._pair, self._noise, self._place, self._scope = pair, noise, place, scope
        self._drawn: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, inputs: Tensor) -> Tensor:
        """Maps activations `(rows, ..., in)` to `(rows, ..., out)`, in the precision of the factor.

        Raises:
            ValueError: If the activations do not have one entry for each row.
        """
        if inputs.shape[0] != len(self._pair):
            raise ValueError(
                f"Noise of its own for each of the {len(self._pair)} rows needs activations with one entry for each, "
                f"and an adapted module has some of shape {tuple(inputs.shape)}: leave the module out of "
                "target_modules."
            )
        inputs = inputs.to(self.weight.dtype)
        with torch.autocast(inputs.device.type, enabled=False):  # squares of half precision underflow
            return self._with_weights(inputs) if self._scope == "weight" else self._in_rank_space(inputs)

    def _in_rank_space(self, inputs: Tensor) -> Tensor:
        between = inputs.shape[1:-1]
        size = self.weight.shape[-2]
        mean, root = (values.reshape(-1, *(1 for _ in between), 1) for values in self._mean_and_root())
        if self._scope == "token":
            noise = self._once(
                between, lambda: self._noise.of_tokens(self._place, between.numel(), size, inputs)
            )
        else:
            noise = self._once((), lambda: self._noise.of_items(self._place, (size,), inputs))
            between = torch.Size(1 for _ in between)
        noise = noise.reshape(len(inputs), *between, size)
        spread = (self._squares(inputs.square()) + TOLERANCE).sqrt()
        return self._mean(inputs) * mean + spread * (root * noise)

    def _with_weights(self, inputs: Tensor) -> Tensor:
        sizes = self.weight.shape[-2:]
        noise = self._once((), lambda: self._noise.of_items(self._place, sizes, inputs))
        mean, root = (values.reshape(-1, 1, 1) for values in self._mean_and_root())
        tiles = self.weight.reshape(-1, *sizes)
        weights = tiles.repeat_interleave(len(inputs) // len(tiles), 0) * (mean + root * noise)
        outputs = torch.bmm(inputs.reshape(len(inputs), -1, sizes[1]), weights.mT)
        return outputs.reshape(*inputs.shape[:-1], sizes[0])

    def _mean_and_root(self) -> tuple[Tensor, Tensor]:
        mean, variance = self._pair.to(self.weight.dtype).unbind(-1)
        return mean, variance.sqrt()

    def _once(self, key: tuple[int, ...], draw: Callable[[], Tensor]) -> Tensor:
        if key not in self._drawn:
            self._drawn[key] = draw()
        return self._drawn[key]
