"""Gaussian matrices whose covariance is a Kronecker product."""

from __future__ import annotations

from typing import cast, final

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.guides.cholesky import CholeskyFactor
from bayeslora_pyro.guides.gaussian import GaussianGuide
from bayeslora_pyro.matrix_normal import MatrixNormal
from bayeslora_pyro.types import FactorStack

__all__ = ["MatrixNormalGuide"]


@final
class MatrixNormalGuide(GaussianGuide):
    r"""Correlated rows and correlated columns, with a closed-form KL.

    .. math:: q(\mathrm{vec}\, V) = \mathcal{N}(\mathrm{vec}\, M,\; L_r L_r^\top \otimes L_c L_c^\top)

    A factor with a latent site of shape `(m, n)` has `mn + m(m + 1)/2 + n(n + 1)/2` parameters.

    Args:
        model: The model to approximate.
        scale: The initial standard deviation of each entry.
        noise_scale: The initial factor of the conditional noise.
        seed: The seed of the initial location.

    References:
        | Structured and Efficient Variational Deep Learning with Matrix Gaussian Posteriors (Louizos and Welling, 2016)
        | https://arxiv.org/abs/1603.04733
    """

    def _setup_stack(
        self, stack: FactorStack, own: nn.Module, start: Tensor, generator: torch.Generator
    ) -> None:
        own.loc = nn.Parameter(start.clone())
        (num_factors, rows, cols), scale = start.shape, self._initial_scale**0.5
        own.row = CholeskyFactor(num_factors, rows, scale, start)
        own.col = CholeskyFactor(num_factors, cols, scale, start)

    def get_base_dist(self, stack: FactorStack) -> TorchDistribution:
        """Matrix normals. Batch shape `(L,)`, event shape `(rows, cols)`."""
        own = self._own(stack)
        row, col = (cast(CholeskyFactor, side)() for side in (own.row, own.col))
        return MatrixNormal(cast(Tensor, own.loc), row, col)
