"""The sparse-GP prior of Bayesian-LoRA: factors that depend on a small inducing matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import softplus

from bayeslora_pyro.distributions import InducedNormal
from bayeslora_pyro.linalg import InducingMap, orthonormal_factor
from bayeslora_pyro.matrix_normal import MatrixNormal
from bayeslora_pyro.models.base import LatentPrior
from bayeslora_pyro.types import FactorStack, Weights

__all__ = ["InducingPrior"]


@final
class InducingPrior(LatentPrior):
    r"""A small inducing matrix per factor, and the factor given it.

    .. math:: V \sim \mathcal{N}(0, I), \qquad
        W \mid V \sim \mathcal{N}\big(\sigma_w R_r^\top V R_c,\; \sigma_w^2 (I - P_r \otimes P_c)\big)

    The marginal of :math:`W` is :math:`\mathcal{N}(0, \sigma_w^2 I)` whatever the inducing locations are: learning
    them is a part of inference. They live here because both sides need them.

    The latent site is :math:`V`, or with `whitened=False` the plain :math:`U = L_r V L_c^\top \sim \mathcal{N}(0,
    K_r \otimes K_c)`: the same model, in which a guide of independent entries is another family.

    Args:
        rows: The number `p` of inducing rows.
        cols: The number `q` of inducing columns.
        scale: The standard deviation :math:`\sigma_w` of each entry, before width scaling.
        width_scaled: Whether to divide it by :math:`\sqrt{d_i}`, the number of inputs of the factor.
        learn_scale: Whether to learn one :math:`\sigma_w` per factor through the ELBO (type-II maximum likelihood);
            `scale` is then where it starts.
        nugget: The initial standard deviation :math:`D` of the nuggets, relative to locations of unit length.
        scale_prior: The standard deviation of :math:`\log \sigma_w` around the logarithm of `scale`, which makes
            :math:`\sigma_w` of each factor a random variable, whatever `learn_scale` is; None for no such hyper-prior.
        whitened: Whether the latent site is :math:`V`, or else :math:`U`. Where `p` or `q` is larger than its side of
            the factor, :math:`U` is nearly degenerate in some directions: keep to :math:`V`.

    References:
        | Bayesian-LoRA: Probabilistic Low-Rank Adaptation of Large Language Models (Lin et al., 2026), Section 3
        | https://arxiv.org/abs/2601.21003
    """

    latent_dims = ("inducing_row", "inducing_col")
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {"scale": ()}

    def __init__(
        self,
        rows: int = 9,
        cols: int = 9,
        scale: float = 0.3,
        width_scaled: bool = True,
        learn_scale: bool = True,
        nugget: float = 1e-3,
        scale_prior: float | None = None,
        whitened: bool = True,
    ) -> None:
        super().__init__()
        sizes = {"rows": rows, "cols": cols, "scale": scale, "nugget": nugget, "scale_prior": scale_prior}
        for name, value in sizes.items():
            if value is not None and value <= 0:
                raise ValueError(f"{name} should be positive, and is {value}.")
        self.rows = rows
        self.cols = cols
        self.scale = scale
        self.width_scaled = width_scaled
        self.learn_scale = learn_scale
        self.nugget = nugget
        self.scale_prior = scale_prior
        self.whitened = whitened
        self.latent = "V" if whitened else "U"

    def config(self) -> dict[str, Any]:
        """The arguments that make this prior again."""
        names = ("rows", "cols", "scale", "width_scaled", "learn_scale", "nugget", "scale_prior", "whitened")
        return {name: getattr(self, name) for name in names}

    def setup(self, stacks: Sequence[FactorStack], initial: Weights, generator: torch.Generator) -> None:
        """Draws inducing locations of about unit length for each factor."""
        for stack in stacks:
            start, size = initial[stack.name], len(stack)
            (d_o, d_i), own = stack.shape, PyroModule()
            raw_nugget = math.log(math.expm1(self.nugget))
            for side, count, width in (("row", self.rows, d_o), ("col", self.cols, d_i)):
                locations = torch.randn(size, count, width, generator=generator) / count**0.5
                setattr(own, f"z_{side}", nn.Parameter(locations.to(start)))
                setattr(own, f"raw_d_{side}", nn.Parameter(start.new_full((size, count), raw_nugget)))
            log_scale = start.new_full(
                (size,), math.log(self.scale / math.sqrt(d_i if self.width_scaled else 1))
            )
            if self.learn_scale and self.scale_prior is None:
                own.log_scale = nn.Parameter(log_scale)
            else:
                own.register_buffer("log_scale", log_scale)
            setattr(self, stack.name, own)

    def hyper_priors(self, stack: FactorStack) -> Mapping[str, TorchDistribution]:
        r"""The scale :math:`\sigma_w`, log-normal around where it was set, where it is a random variable."""
        if self.scale_prior is None:
            return {}
        log_scale = self._own(stack).log_scale
        return {"scale": dist.LogNormal(log_scale, torch.full_like(log_scale, self.scale_prior))}

    def latent_prior(self, stack: FactorStack, **given: Tensor) -> TorchDistribution:
        """A white inducing matrix, or a matrix normal one. Event shape `(p, q)`."""
        zeros = self._own(stack).raw_d_row.new_zeros(self.rows, self.cols)
        if self.whitened:
            return dist.Normal(zeros, 1.0).to_event(2)
        row_tril, col_tril = (side.cholesky.to(zeros.dtype) for side in self._maps(stack))
        return MatrixNormal(zeros, row_tril, col_tril)

    def conditional(
        self, stack: FactorStack, latent: Tensor, noise_scale: Tensor | float = 1.0, **hyper: Tensor
    ) -> InducedNormal:
        r"""The distribution of the factors given their inducing matrices, its noise scaled by :math:`\lambda`."""
        rows, cols = self._maps(stack)
        white = latent if self.whitened else cols.whiten(rows.whiten(latent).mT).mT
        return InducedNormal(white, rows, cols, noise_scale, self._scale(stack, hyper))

    def initial_latent(self, stack: FactorStack, generator: torch.Generator) -> Tensor:
        """A draw of the inducing matrices from the prior. Shape `(L, p, q)`."""
        like = self._own(stack).raw_d_row
        white = torch.randn(len(stack), self.rows, self.cols, generator=generator).to(like)
        return white if self.whitened else self._colour(stack, white)

    def embed(self, stack: FactorStack, weights: Tensor, **hyper: Tensor) -> Tensor:
        r"""Represents given factors exactly where `p` and `q` reach their rank, and else as well as possible.

        A factor :math:`W = C Q` with orthonormal rows :math:`Q` has :math:`Z_c = Q`, :math:`Z_r = I` (the other way
        round if it is tall); unused inducing variables get locations of zero. With nuggets :math:`D = \epsilon I` the
        maps are :math:`R = Z / \sqrt{1 + \epsilon^2}`, so :math:`V = (1 + \epsilon^2) C / \sigma_w`.

        References:
            | Bayesian-LoRA (Lin et al., 2026), Corollary on the deterministic limit
            | https://arxiv.org/abs/2601.21003
        """
        d_o, d_i = stack.shape
        own, rank = self._own(stack), min(self.rows, self.cols, d_o, d_i)
        core, right = orthonormal_factor(weights, rank)
        left_core, left = orthonormal_factor(core.mT, rank)  # core = left^T left_core^T
        with torch.no_grad():
            for locations, value in ((own.z_row, left), (own.z_col, right)):
                locations.zero_()[:, :rank] = value
            for raw in (own.raw_d_row, own.raw_d_col):
                raw.fill_(math.log(math.expm1(self.nugget)))
            latent = weights.new_zeros(len(stack), self.rows, self.cols)
            factor = (1 + self.nugget**2) / self._scale(stack, hyper)
            latent[:, :rank, :rank] = left_core.mT * factor[:, None, None]
            return latent if self.whitened else self._colour(stack, latent)

    def _maps(self, stack: FactorStack) -> tuple[InducingMap, InducingMap]:
        own = self._own(stack)
        rows = InducingMap(own.z_row, softplus(own.raw_d_row))
        return rows, InducingMap(own.z_col, softplus(own.raw_d_col))

    def _scale(self, stack: FactorStack, hyper: Mapping[str, Tensor]) -> Tensor:
        scale: Tensor = hyper["scale"] if "scale" in hyper else self._own(stack).log_scale.exp()
        return scale

    def _colour(self, stack: FactorStack, white: Tensor) -> Tensor:
        r"""Computes :math:`U = L_r V L_c^\top`."""
        with torch.no_grad():
            row_tril, col_tril = (side.cholesky.to(white.dtype) for side in self._maps(stack))
            return row_tril @ white @ col_tril.mT

    def _own(self, stack: FactorStack) -> Any:
        return getattr(self, stack.name)
