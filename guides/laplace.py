"""Gaussians from the curvature of the likelihood at a point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, cast, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.config import PREDICTIVES
from bayeslora_pyro.guides.base import NOISE_SCALE, Guide, GuidedModel
from bayeslora_pyro.kronecker_normal import KroneckerNormal
from bayeslora_pyro.types import FactorStack

__all__ = ["LaplaceGuide"]


@final
class LaplaceGuide(Guide):
    r"""A Gaussian around a point whose precision is the curvature of the likelihood there plus that of the prior.

    .. math::
        q(\mathrm{vec}\, W) = \mathcal{N}\big(\mathrm{vec}\, M, (G + \lambda I)^{-1}\big), \qquad
        G = Q_r \mathrm{diag}(u) Q_r^\top \otimes Q_c \mathrm{diag}(v) Q_c^\top
        \quad\text{or}\quad G = \mathrm{diag}(g)

    :func:`~bayeslora_pyro.laplace_posterior` sets point, curvature and precision. Made anew, it has no curvature and is
    isotropic. In a fit the point and the precision are trained, and the curvature stays.

    Args:
        model: The model to approximate.
        structure: `"kronecker"` or `"diagonal"`.
        ranks: The numbers of eigenvectors of rows and columns by stack name, `{}` for none.
        predictive: How to predict, one of `PREDICTIVES`: through the linearised model, as a Laplace approximation
            should, or with draws of the weights in the language model itself (`"network"`).
        scale: The initial standard deviation of each entry, :math:`\lambda^{-1/2}`.
        noise_scale: The initial factor of the conditional noise.
        seed: The seed of the initial location.

    References:
        | Bayesian Low-rank Adaptation for Large Language Models (Yang et al., 2024), Section 3
        | https://arxiv.org/abs/2308.13111
    """

    def __init__(
        self,
        model: GuidedModel,
        *,
        structure: Literal["kronecker", "diagonal"] = "kronecker",
        ranks: Mapping[str, Sequence[int]] | None = None,
        predictive: str = "network",
        scale: float = 0.05,
        noise_scale: float = NOISE_SCALE,
        seed: int = 0,
    ) -> None:
        if structure not in ("kronecker", "diagonal"):
            raise ValueError(f"structure should be 'kronecker' or 'diagonal', and is {structure!r}.")
        if predictive not in PREDICTIVES:
            raise ValueError(f"predictive should be one of {', '.join(PREDICTIVES)}, and is {predictive!r}.")
        if scale <= 0:
            raise ValueError(f"scale should be positive, and is {scale}.")
        self.structure = structure
        self.ranks = {name: tuple(pair) for name, pair in (ranks or {}).items()}
        self.predictive = predictive
        self._initial_scale = scale
        super().__init__(model, noise_scale=noise_scale, seed=seed)

    def config(self) -> dict[str, Any]:
        """The arguments, beside the model, that make this guide again."""
        return {
            "structure": self.structure,
            "ranks": {name: list(pair) for name, pair in self.ranks.items()},
            "predictive": self.predictive,
            "scale": self._initial_scale,
            "noise_scale": self.initial_noise_scale,
            "seed": self.seed,
        }

    def _setup_stack(
        self, stack: FactorStack, own: nn.Module, start: Tensor, generator: torch.Generator
    ) -> None:
        count, rows, cols = start.shape
        own.loc = nn.Parameter(start.clone())
        own.log_precision = nn.Parameter(start.new_full((count,), self._initial_scale).log() * -2)
        if self.structure == "diagonal":
            own.register_buffer("curvature", torch.zeros_like(start))
            return
        sides = zip(("row", "col"), (rows, cols), self.ranks.get(stack.name, (0, 0)), strict=True)
        for side, size, rank in sides:
            own.register_buffer(f"{side}_vectors", start.new_zeros(count, size, rank))
            own.register_buffer(f"{side}_values", start.new_zeros(count, rank))

    def get_base_dist(self, stack: FactorStack) -> TorchDistribution:
        """The Gaussians. Batch shape `(L,)`, event shape `(rows, cols)`."""
        own = cast(Any, self._own(stack))
        precision = own.log_precision.exp()
        if self.structure == "diagonal":
            return dist.Normal(own.loc, (own.curvature + precision[:, None, None]).rsqrt()).to_event(2)
        return KroneckerNormal(
            own.loc, precision, own.row_vectors, own.row_values, own.col_vectors, own.col_values
        )

    def set_curvature(self, stack: FactorStack, precision: Tensor, **curvature: Tensor) -> None:
        """Sets what the guide is made of, beside its location.

        Args:
            stack: The stack.
            precision: The precision of the prior. Shape `(L,)`.
            curvature: `curvature`, `(L, rows, cols)`, of a diagonal guide; `row_vectors`, `row_values`, `col_vectors`,
                `col_values` of the other, as :class:`~bayeslora_pyro.kronecker_normal.KroneckerNormal` has them.
        """
        own = cast(Any, self._own(stack))
        with torch.no_grad():
            own.log_precision.copy_(precision.log())
            for name, value in curvature.items():
                own.get_buffer(name).copy_(value)

    def set_precision(self, precision: float) -> Self:
        r"""Sets the precision of the prior of all factors, :math:`\lambda`, and leaves their curvature.

        Args:
            precision: The precision.

        Returns:
            The guide.

        Raises:
            ValueError: If it is not positive.
        """
        if not 0 < precision < math.inf:
            raise ValueError(f"precision should be positive, and is {precision}.")
        with torch.no_grad():
            for stack in self.stacks:
                if self.model.prior_of(stack).latent is not None:
                    cast(Any, self._own(stack)).log_precision.fill_(math.log(precision))
        return self

    def _set_location(self, stack: FactorStack, latent: Tensor) -> None:
        with torch.no_grad():
            cast(Tensor, self._own(stack).loc).copy_(latent)
