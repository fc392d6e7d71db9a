"""Gaussian factors whose rows and columns are correlated, by covariances that are learned."""

from __future__ import annotations

from typing import Any, final

from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from bayeslora_pyro.matrix_normal import MatrixNormal
from bayeslora_pyro.models.weights import WeightPrior
from bayeslora_pyro.types import FactorStack

__all__ = ["MatrixNormalPrior"]


@final
class MatrixNormalPrior(WeightPrior):
    r"""A matrix normal whose row and column covariances are learned through the ELBO (type-II maximum likelihood).

    .. math:: \mathrm{vec}\, W \sim \mathcal{N}(0, \; L_r L_r^\top \otimes L_c L_c^\top)

    It starts at independent entries, :math:`L_r = \sigma I, L_c = I`. A Cholesky factor of `d` inputs has `d²` entries:
    the factors of a stack share theirs by default.

    Args:
        scale: The standard deviation :math:`\sigma` of each entry, at the start.
        width_scaled: Whether to divide it by :math:`\sqrt{d_i}`, the number of inputs of the factor.
        shared: Whether the factors of a stack share their covariances.

    References:
        | Matrix Variate Distributions (Gupta and Nagar, 1999), Chapter 2
        | Structured and Efficient Variational Deep Learning with Matrix Gaussian Posteriors (Louizos and Welling, 2016)
        | https://arxiv.org/abs/1603.04733
    """

    def __init__(self, scale: float = 1.0, width_scaled: bool = False, shared: bool = True) -> None:
        super().__init__(scale, width_scaled)
        self.shared = shared

    def config(self) -> dict[str, Any]:
        """The arguments that make this prior again."""
        return super().config() | {"shared": self.shared}

    def _setup_stack(self, stack: FactorStack) -> None:
        own, batch = PyroModule[nn.Module](), () if self.shared else (len(stack),)
        for side, size, scale in (
            ("row", stack.shape[0], self.entry_scale(stack)),
            ("col", stack.shape[1], 1.0),
        ):
            log_diagonal = self._full(stack, (*batch, size), scale).log()
            setattr(own, f"raw_{side}_tril", nn.Parameter(log_diagonal.diag_embed()))
        setattr(self, stack.name, own)

    def latent_prior(self, stack: FactorStack, **given: Tensor) -> TorchDistribution:
        """A matrix normal. Batch shape `()` or `(L,)`, event shape `(d_o, d_i)`."""
        own: Any = getattr(self, stack.name)
        row_tril, col_tril = (_lower_cholesky(raw) for raw in (own.raw_row_tril, own.raw_col_tril))
        return MatrixNormal(self._full(stack, stack.shape, 0.0), row_tril, col_tril)


def _lower_cholesky(raw: Tensor) -> Tensor:
    """A lower triangular matrix with a positive diagonal, of any matrix."""
    return raw.tril(-1) + raw.diagonal(dim1=-2, dim2=-1).exp().diag_embed()
