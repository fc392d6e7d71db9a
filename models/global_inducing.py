"""Inducing matrices that all layers share, so that their factors are correlated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.nn.functional import normalize

from bayeslora_pyro.distributions import InducedNormal
from bayeslora_pyro.models.base import LatentPrior
from bayeslora_pyro.models.inducing import InducingPrior
from bayeslora_pyro.types import FactorStack, Weights

__all__ = ["GlobalInducingPrior"]


@final
class GlobalInducingPrior(LatentPrior):
    r"""The inducing prior, with inducing matrices that are mixed of `K` common ones and one of their own.

    .. math::
        U_k \sim \mathcal{N}(0, I), \qquad
        V_f \mid U \sim \mathcal{N}\Big(\sqrt{\rho_f} \sum_k c_{fk} U_k,\; (1 - \rho_f) I\Big), \quad \|c_f\| = 1

    and :math:`W_f \mid V_f` as in :class:`InducingPrior`. Each :math:`V_f` is :math:`\mathcal{N}(0, I)` on its own, and
    the same entry of two has the correlation :math:`\sqrt{\rho_f \rho_g} \, c_f \cdot c_g`, within a stack and between
    stacks: a linear model of coregionalization. Shares :math:`\rho_f` and mixing weights :math:`c_f` are learned
    through the ELBO (type-II maximum likelihood).

    Args:
        rows: The number `p` of inducing rows.
        cols: The number `q` of inducing columns.
        num_shared: The number `K` of common inducing matrices.
        share: The share :math:`\rho` of the variance that is common, at the start, between 0 and 1.
        scale: The standard deviation :math:`\sigma_w` of each entry, before width scaling.
        width_scaled: Whether to divide it by :math:`\sqrt{d_i}`, the number of inputs of the factor.
        learn_scale: Whether to learn one :math:`\sigma_w` per factor through the ELBO.
        nugget: The initial standard deviation of the nuggets.
        scale_prior: The standard deviation of :math:`\log \sigma_w`; see :class:`InducingPrior`.

    References:
        | Kernels for Vector-Valued Functions: a Review (Álvarez, Rosasco and Lawrence, 2012), Section 4.2
        | https://arxiv.org/abs/1106.6251
        | Global inducing point variational posteriors for Bayesian neural networks and deep Gaussian processes (Ober
          and Aitchison, 2021)
        | https://arxiv.org/abs/2005.08140
    """

    latent = "V"
    latent_dims = InducingPrior.latent_dims
    dims: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **InducingPrior.dims,
        "U": ("shared_matrix", *InducingPrior.latent_dims),
    }

    def __init__(
        self,
        rows: int = 9,
        cols: int = 9,
        num_shared: int = 4,
        share: float = 0.5,
        scale: float = 0.3,
        width_scaled: bool = True,
        learn_scale: bool = True,
        nugget: float = 1e-3,
        scale_prior: float | None = None,
    ) -> None:
        super().__init__()
        if num_shared < 1:
            raise ValueError(f"num_shared should be at least 1, and is {num_shared}.")
        if not 0 < share < 1:
            raise ValueError(f"share should lie between 0 and 1, and is {share}.")
        self.num_shared = num_shared
        self.share = share
        self.own = InducingPrior(rows, cols, scale, width_scaled, learn_scale, nugget, scale_prior)

    def config(self) -> dict[str, Any]:
        """The arguments that make this prior again."""
        inducing = {name: value for name, value in self.own.config().items() if name != "whitened"}
        return inducing | {"num_shared": self.num_shared, "share": self.share}

    def setup(self, stacks: Sequence[FactorStack], initial: Weights, generator: torch.Generator) -> None:
        """Draws inducing locations and mixing weights."""
        self.own.setup(stacks, initial, generator)
        for stack in stacks:
            start, mixing = initial[stack.name], PyroModule[nn.Module]()
            directions = torch.randn(len(stack), self.num_shared, generator=generator)
            mixing.directions = nn.Parameter(directions.to(start))
            mixing.raw_share = nn.Parameter(
                start.new_full((len(stack),), math.log(self.share / (1 - self.share)))
            )
            setattr(self, f"mixing_{stack.name}", mixing)

    def mixing(self, stack: FactorStack) -> Tensor:
        r"""The mixing weights :math:`\sqrt{\rho_f} c_f`. Shape `(L, K)`."""
        own: Any = getattr(self, f"mixing_{stack.name}")
        return normalize(own.directions, dim=-1) * own.raw_share.sigmoid().sqrt()[:, None]

    def shared_priors(self) -> Mapping[str, TorchDistribution]:
        """The common inducing matrices, white. Event shape `(K, p, q)`."""
        like = next(self.parameters())
        zeros = like.new_zeros(self.num_shared, self.own.rows, self.own.cols)
        return {"U": dist.Normal(zeros, 1.0).to_event(3)}

    def hyper_priors(self, stack: FactorStack) -> Mapping[str, TorchDistribution]:
        r"""Those of :class:`InducingPrior`."""
        return self.own.hyper_priors(stack)

    def latent_prior(self, stack: FactorStack, **given: Tensor) -> TorchDistribution:
        """Independent normals around a mixture of the common matrices. Batch shape `(..., L)`."""
        own: Any = getattr(self, f"mixing_{stack.name}")
        mean = (self.mixing(stack)[..., None, None] * given["U"]).sum(-3)
        scale = (-own.raw_share).sigmoid().sqrt()
        return dist.Normal(mean, scale[:, None, None]).to_event(2)

    def conditional(
        self, stack: FactorStack, latent: Tensor, noise_scale: Tensor | float = 1.0, **hyper: Tensor
    ) -> InducedNormal:
        r"""The distribution of the factors given their inducing matrices, its noise scaled by :math:`\lambda`."""
        return self.own.conditional(stack, latent, noise_scale, **hyper)

    def initial_latent(self, stack: FactorStack, generator: torch.Generator) -> Tensor:
        """A draw of the inducing matrices from their marginal prior. Shape `(L, p, q)`."""
        return self.own.initial_latent(stack, generator)

    def embed(self, stack: FactorStack, weights: Tensor, **hyper: Tensor) -> Tensor:
        """Represents given factors as :class:`InducingPrior` does."""
        return self.own.embed(stack, weights, **hyper)
