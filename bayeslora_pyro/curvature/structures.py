"""Accumulators of curvature: what is kept of the generalised Gauss-Newton matrix of the likelihood."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from bayeslora_pyro.curvature.recording import Gradients, Record
from bayeslora_pyro.curvature.sides import Eigen, Side
from bayeslora_pyro.types import FactorStack

__all__ = ["Diagonal", "Full", "Kronecker", "Structure", "jacobian"]


class Structure(ABC):
    """Sums, over the items of a data set, what one structure keeps of their curvature."""

    def add_inputs(self, record: Record) -> None:  # noqa: B027  # gradients may be all that a structure keeps
        """Adds what the factors were given in a forward pass, once for each batch."""

    @abstractmethod
    def add_gradients(self, record: Record, gradients: Gradients) -> None:
        r"""Adds the gradients of a batch, once for each column of the root of the Fisher information of its scores.

        Args:
            record: The forward pass.
            gradients: The pull-back of the column, :math:`R_{\cdot k}`.
        """


def jacobian(record: Record, gradients: Gradients, index: int) -> Tensor:
    r"""The derivative of the pulled-back number of each item by a factor, :math:`J_n = \sum_t g_{nt} a_{nt}^\top`.

    Returns:
        Shape `(items, d_o, d_i)`.
    """
    total: Tensor | None = None
    for (inputs, mask), outer in zip(record.inputs(index), gradients.of[index], strict=True):
        by_row = (outer * mask.unsqueeze(-1)).mT @ inputs
        by_item = by_row.new_zeros(record.num_items, *by_row.shape[1:]).index_add(0, record.item, by_row)
        total = by_item if total is None else total + by_item
    if total is None:
        raise ValueError("A factor was not used in the forward pass: leave its layer out of target_modules.")
    return total


@dataclass(frozen=True)
class Sizes:
    """How large the sides of a Kronecker factorization may be.

    Args:
        rank: The number of eigenvectors of a side that is not kept whole.
        sketch: How many it has until the last batch.
        max_dense: The largest side that is kept whole.
    """

    rank: int = 10
    sketch: int = 40
    max_dense: int = 1024


@final
class Kronecker(Structure):
    r"""The Kronecker-factored approximation of the curvature of each factor, for layers that share weights over tokens.

    .. math::
        G \approx \Big(\sum_n \sum_t g_{nt} g_{nt}^\top\Big)
        \otimes \Big(\frac{1}{\sum_n T_n} \sum_n \sum_t a_{nt} a_{nt}^\top\Big) \quad\text{(expand)}, \qquad
        G \approx \Big(\sum_n \hat g_n \hat g_n^\top\Big)
        \otimes \Big(\frac{1}{N} \sum_n \hat a_n \hat a_n^\top\Big) \quad\text{(reduce)}

    with :math:`\hat g_n = \sum_t g_{nt}` and :math:`\hat a_n = \frac{1}{T_n} \sum_t a_{nt}`. Outer products of g are
    summed over the columns of the root of the Fisher information. Tokens that only fill a row count nowhere, so that
    batches, padding and order make no difference.

    Args:
        stacks: The stacks of factors.
        sizes: How large its sides may be.
        sharing: Which of the two approximations.
        device: Where the sums are kept.

    References:
        | Kronecker-Factored Approximate Curvature for Modern Neural Network Architectures (Eschenhagen et al., 2023)
        | https://arxiv.org/abs/2311.00636
    """

    def __init__(
        self,
        stacks: Sequence[FactorStack],
        sizes: Sizes,
        sharing: Literal["expand", "reduce"],
        device: torch.device,
    ) -> None:
        if sharing not in ("expand", "reduce"):
            raise ValueError(f"sharing should be 'expand' or 'reduce', and is {sharing!r}.")
        self.sharing = sharing
        shapes = [stack.shape for stack in stacks for _ in stack.adapters]
        self._out, self._in = (
            [Side(shape[d], sizes.rank, sizes.sketch, sizes.max_dense, device) for shape in shapes]
            for d in (0, 1)
        )
        self._counts = [0] * len(shapes)

    def add_inputs(self, record: Record) -> None:
        """Adds what the factors were given."""
        for index, side in enumerate(self._in):
            calls = list(record.inputs(index))
            if self.sharing == "expand":
                for inputs, mask in calls:
                    side.add(inputs[mask])
                    self._counts[index] += int(mask.sum())
            else:
                tokens = sum(_by_item(record, mask.sum(1)) for _, mask in calls)
                total = sum(_by_item(record, (inputs * mask.unsqueeze(-1)).sum(1)) for inputs, mask in calls)
                side.add(total / torch.as_tensor(tokens).unsqueeze(-1))
                self._counts[index] += record.num_items

    def add_gradients(self, record: Record, gradients: Gradients) -> None:
        """Adds the gradients for one column."""
        for index, side in enumerate(self._out):
            calls = zip(gradients.of[index], record.inputs(index), strict=True)
            if self.sharing == "expand":
                side.add(torch.cat([gradient[mask] for gradient, (_, mask) in calls]))
            else:
                sums = [_by_item(record, (g * mask.unsqueeze(-1)).sum(1)) for g, (_, mask) in calls]
                side.add(torch.cat(sums))

    @property
    def num_bytes(self) -> int:
        """What the sums take of memory."""
        return sum(side.num_bytes for side in (*self._out, *self._in))

    def eigen(self, index: int, scale: float = 1.0) -> tuple[Eigen, Eigen]:
        """The eigenvectors of both sides of a factor, of its rows (outputs) times a number, and of its columns."""
        return self._out[index].eigen(scale), self._in[index].eigen(1 / self._counts[index])


@final
class Diagonal(Structure):
    r"""The exact diagonal of the curvature of each factor, :math:`\sum_n \sum_k (J_{nk})_{ij}^2`."""

    def __init__(self, stacks: Sequence[FactorStack], device: torch.device) -> None:
        self.sums = [
            torch.zeros(stack.shape, dtype=torch.float64, device=device)
            for stack in stacks
            for _ in stack.adapters
        ]

    def add_gradients(self, record: Record, gradients: Gradients) -> None:
        """Adds the gradients for one column."""
        for index, total in enumerate(self.sums):
            total += jacobian(record, gradients, index).to(torch.float64).square().sum(0)


@final
class Full(Structure):
    r"""The whole matrix over all factors, :math:`\sum_n \sum_k \mathrm{vec} J_{nk}\, \mathrm{vec} J_{nk}^\top`.

    It has as many rows as there are parameters: for tests.

    Args:
        stacks: The stacks of factors.
        device: Where the sum is kept.
    """

    def __init__(self, stacks: Sequence[FactorStack], device: torch.device) -> None:
        self.num_factors = sum(len(stack) for stack in stacks)
        size = sum(len(stack) * stack.shape[0] * stack.shape[1] for stack in stacks)
        self.matrix = torch.zeros(size, size, dtype=torch.float64, device=device)

    def add_gradients(self, record: Record, gradients: Gradients) -> None:
        """Adds the gradients for one column."""
        rows = self.rows(record, gradients)
        self.matrix += rows.mT @ rows

    def rows(self, record: Record, gradients: Gradients) -> Tensor:
        """The derivative of the pulled-back number of each item by all entries, in the order of the stacks."""
        parts = [jacobian(record, gradients, index).flatten(1) for index in range(self.num_factors)]
        return torch.cat(parts, dim=1).to(torch.float64)


def _by_item(record: Record, values: Tensor) -> Tensor:
    """Sums what rows have over the rows of each item."""
    return values.new_zeros(record.num_items, *values.shape[1:]).index_add(0, record.item, values)
