"""Householder reflections, of vectors by vectors: no orthogonal matrix is ever made."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["normals_of", "reflect"]


def normals_of(vectors: Tensor) -> tuple[Tensor, ...]:
    """Return n normal vectors of length one, each `(1, dim)`.

    Args:
        vectors: The normal vectors, of any length, `(n, dim)`; or a stack `(L, n, dim)`, for `(L, 1, dim)`.
    """
    return normalize(vectors, dim=-1).unsqueeze(-3).unbind(-2)


def reflect(x: Tensor, normals: Sequence[Tensor]) -> Tensor:
    r"""Apply one reflection after the other, :math:`x \leftarrow x - 2 (u \cdot x) u`, to x `(..., dim)`."""
    for u in normals:
        x = x - 2.0 * (x * u).sum(-1, keepdim=True) * u
    return x
