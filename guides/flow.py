"""A normalizing flow on top of another family."""

from __future__ import annotations

from typing import Any, Literal, cast, final

import pyro
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.guides.base import NOISE_SCALE, Guide, GuidedModel
from bayeslora_pyro.guides.delta import DeltaGuide
from bayeslora_pyro.guides.full_rank import FullRankGuide
from bayeslora_pyro.guides.low_rank import LowRankGuide
from bayeslora_pyro.guides.matrix_normal import MatrixNormalGuide
from bayeslora_pyro.guides.mean_field import MeanFieldGuide
from bayeslora_pyro.guides.mixture import MixtureGuide
from bayeslora_pyro.transforms import (
    ConditionedTransform,
    MatrixTransform,
    RememberingTransform,
    StackedTransform,
    find_transform,
    iterated,
)
from bayeslora_pyro.types import FactorStack, TransformFactory

__all__ = ["BASES", "FlowGuide"]

BASES: dict[str, type[Guide]] = {
    "mean_field": MeanFieldGuide,
    "matrix_normal": MatrixNormalGuide,
    "low_rank": LowRankGuide,
    "full_rank": FullRankGuide,
    "mixture": MixtureGuide,
    "delta": DeltaGuide,
}
"""The families that a flow may start from."""


@final
class FlowGuide(Guide):
    r"""A base distribution pushed through a flow, :math:`V = T_\phi(V_0)`, with one flow per factor.

    The flow is autoregressive, or whatever the transform is, over the columns, and the rows of one factor share it; or
    over all entries of the latent matrix, `over="matrix"`. Each factor has parameters of its own, or one shared network
    makes them from a learned embedding of each, `conditioned=True`.

    There is no closed-form divergence; the ELBO takes its estimate from the draw at hand,

    .. math:: \log q(V_0) - \log |\det J_T(V_0)| - \log p(T_\phi(V_0))

    Args:
        model: The model to approximate.
        transform: A name in `TRANSFORMS`, several joined as in `"permute+affine_coupling"`, or any callable from a
            dimension to a transform.
        depth: How often the transform is repeated, each time with parameters of its own.
        over: What the flow maps: `"rows"`, each on its own, or the whole `"matrix"`.
        conditioned: Whether the factors of a stack share one flow, conditioned on an embedding of each.
        embedding_dim: The size of an embedding.
        base: The family to start from: a name in `BASES`, or a class of guide.
        noise_scale: The initial factor of the conditional noise.
        seed: The seed of everything that starts at random.
        base_options: Further arguments of the base family.

    References:
        | Bayesian-LoRA (Lin et al., 2026), Section 4; Variational Inference with Normalizing Flows (Rezende and
          Mohamed, 2015)
        | https://arxiv.org/abs/2601.21003
        | https://arxiv.org/abs/1505.05770
    """

    def __init__(
        self,
        model: GuidedModel,
        *,
        transform: str | TransformFactory = "affine_autoregressive",
        depth: int = 1,
        over: Literal["rows", "matrix"] = "rows",
        conditioned: bool = False,
        embedding_dim: int = 4,
        base: str | type[Guide] = "mean_field",
        noise_scale: float = NOISE_SCALE,
        seed: int = 0,
        **base_options: Any,
    ) -> None:
        self._factory = iterated(
            depth, find_transform(transform) if isinstance(transform, str) else transform
        )
        if over not in ("rows", "matrix"):
            raise ValueError(f"over={over!r} is not known. Choose one of rows, matrix.")
        if isinstance(base, str) and base not in BASES:
            raise ValueError(f"base={base!r} is not known. Choose one of {', '.join(BASES)}.")
        self._options: dict[str, Any] = {
            "transform": transform,
            "depth": depth,
            "over": over,
            "conditioned": conditioned,
            "embedding_dim": embedding_dim,
            "base": base,
        } | base_options
        self._base_options = base_options
        super().__init__(model, noise_scale=noise_scale, seed=seed)

    def _setup(self) -> None:
        base = self._options["base"]
        family = BASES[base] if isinstance(base, str) else base
        options = {"noise_scale": self.initial_noise_scale, "seed": self.seed} | self._base_options
        self.base = family(self.model, **options)
        for index, stack in enumerate(self.stacks):
            if self.model.prior_of(stack).latent is not None:
                flow = self._make_flow(stack, self.seed + index)
                setattr(self, f"flow_{stack.name}", flow.to(next(self.base._own(stack).parameters())))

    def _make_flow(self, stack: FactorStack, seed: int) -> RememberingTransform:
        with pyro.validation_enabled(False):  # only a shape is read, and meta tensors have no values
            rows, cols = self.base.get_base_dist(stack).event_shape[-2:]
        whole = self._options["over"] == "matrix"
        dim = rows * cols if whole else cols
        if self._options["conditioned"]:
            size = self._options["embedding_dim"]
            flow: StackedTransform = ConditionedTransform(
                self._factory, len(stack), dim, embedding_dim=size, seed=seed
            )
        else:
            flow = StackedTransform(self._factory, len(stack), dim, seed=seed)
        return MatrixTransform(flow, (rows, cols)) if whole else flow

    def config(self) -> dict[str, Any]:
        """The arguments, beside the model, that make this guide again."""
        return self._options | {"noise_scale": self.initial_noise_scale, "seed": self.seed}

    def get_base_dist(self, stack: FactorStack) -> TorchDistribution:
        """The base distribution of the base family. Batch shape `(L,)`, event shape `(rows, cols)`."""
        return self.base.get_base_dist(stack)

    def get_transform(self, stack: FactorStack) -> RememberingTransform:
        """The flows of the factors of a stack."""
        return cast(RememberingTransform, getattr(self, f"flow_{stack.name}"))

    def _setup_stack(self, stack: FactorStack, own: nn.Module, start: Tensor, generator: Any) -> None:
        """The base family has set up its own parameters."""

    def _set_location(self, stack: FactorStack, latent: Tensor) -> None:
        # Not every flow is the identity: the base starts where the flow leads to the latent value.
        self.base._set_location(stack, self.get_transform(stack).preimage(latent))

    def _own(self, stack: FactorStack) -> nn.Module:
        return self.base._own(stack)
