"""One side of a Kronecker factorization: a sum of outer products, whole or of low rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Eigen", "Side"]


@dataclass(frozen=True)
class Eigen:
    """A positive semi-definite matrix by its largest eigenvalues.

    Args:
        vectors: The eigenvectors. Shape `(d, k)`.
        values: The eigenvalues, from the largest down. Shape `(k,)`.
        captured: The share of the trace that they make up.
    """

    vectors: Tensor
    values: Tensor
    captured: float


class Side:
    r"""Sums outer products :math:`\sum_m x_m x_m^\top`, in float64.

    A side of up to `max_dense` dimensions is kept whole. A larger one is kept as :math:`B B^\top` with
    `sketch` columns, by incremental singular value decomposition,

    .. math:: [B \mid X^\top] = U \Sigma V^\top, \qquad B \leftarrow U_{:, 1:k} \Sigma_{1:k}

    which never says more than there is: the sum minus :math:`B B^\top` is positive semi-definite.

    Args:
        size: The number of dimensions, d.
        rank: How many eigenvectors a side that is not kept whole gets in the end.
        sketch: How many it has until then.
        max_dense: The largest number of dimensions that is kept whole.
        device: Where it is kept.
    """

    def __init__(self, size: int, rank: int, sketch: int, max_dense: int, device: torch.device) -> None:
        self.size, self.rank, self.sketch = size, min(rank, size), min(max(rank, sketch), size)
        self.is_dense = size <= max_dense
        shape = (size, size) if self.is_dense else (size, 0)
        self._kept = torch.zeros(shape, dtype=torch.float64, device=device)
        self._trace = torch.zeros((), dtype=torch.float64, device=device)

    @property
    def num_bytes(self) -> int:
        """What it takes of memory."""
        return self._kept.nbytes

    def add(self, rows: Tensor) -> None:
        """Adds the outer products of rows. Shape `(rows, d)`."""
        rows = rows.to(torch.float64)
        self._trace += rows.square().sum()
        if self.is_dense:
            self._kept += rows.mT @ rows
            return
        self._kept = _truncate(torch.cat([self._kept, rows.mT], dim=1), self.sketch)

    def eigen(self, scale: float = 1.0) -> Eigen:
        """The eigenvectors of the sum, times a number."""
        if self.is_dense:
            values, vectors = torch.linalg.eigh(self._kept)
            values, vectors = values.flip(-1).clamp(min=0), vectors.flip(-1)
        else:
            kept = _truncate(self._kept, self.rank)
            values = kept.square().sum(0)
            vectors = torch.linalg.qr(kept)[0] if kept.shape[1] else kept
            if kept.shape[1] < self.rank:  # fewer rows than eigenvectors: the rest is nothing
                vectors = _completed(vectors, self.rank)
                values = torch.nn.functional.pad(values, (0, self.rank - len(values)))
        captured = float(values.sum() / self._trace) if self._trace else 1.0
        return Eigen(vectors, values * scale, captured)


def _truncate(columns: Tensor, rank: int) -> Tensor:
    r"""The best :math:`B B^\top \approx C C^\top` of some rank, with orthogonal columns, the longest first."""
    if columns.shape[0] <= columns.shape[1]:
        values, vectors = torch.linalg.eigh(columns @ columns.mT)
        return (vectors * values.clamp(min=0).sqrt()).flip(-1)[:, :rank]
    _, vectors = torch.linalg.eigh(columns.mT @ columns)  # of the small Gram matrix
    return (columns @ vectors.flip(-1))[:, :rank]


def _completed(vectors: Tensor, rank: int) -> Tensor:
    """More orthonormal columns beside the ones there are."""
    more = torch.eye(vectors.shape[0], dtype=vectors.dtype, device=vectors.device)[:, :rank]
    return torch.linalg.qr(torch.cat([vectors, more], dim=1))[0][:, :rank]
