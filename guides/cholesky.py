"""Cholesky factors as the product of a scale per row and a unit triangle."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["CholeskyFactor"]


class CholeskyFactor(nn.Module):
    r"""The Cholesky factors of L covariances, :math:`C = \mathrm{diag}(s) \, (I + N)`, N strictly lower triangular.

    One step on an entry of :math:`N` turns the covariance as far whatever its scale is. They start as multiples of
    the identity.

    Args:
        num_factors: The number L of covariances.
        size: The number `n` of their rows.
        scale: The initial :math:`s`.
        like: A tensor that tells dtype and device.
    """

    def __init__(self, num_factors: int, size: int, scale: float, like: Tensor) -> None:
        super().__init__()
        self.size = size
        self.log_scale = nn.Parameter(like.new_full((num_factors, size), scale).log())
        self.lower = nn.Parameter(like.new_zeros(num_factors, size * (size - 1) // 2)) if size > 1 else None

    def forward(self) -> Tensor:
        """The factors. Shape `(L, n, n)`."""
        scale = self.log_scale.exp().unsqueeze(-1)
        if self.lower is None:
            return scale
        triangle = torch.eye(self.size, dtype=scale.dtype, device=scale.device).repeat(len(scale), 1, 1)
        rows, cols = torch.tril_indices(self.size, self.size, offset=-1, device=scale.device)
        triangle[:, rows, cols] = self.lower
        return scale * triangle
