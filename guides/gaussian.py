"""What the Gaussian families have in common: a centre, and the scale that they start from."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from bayeslora_pyro.guides.base import NOISE_SCALE, Guide, GuidedModel
from bayeslora_pyro.types import FactorStack

__all__ = ["GaussianGuide"]


class GaussianGuide(Guide):
    """A Gaussian family, whose parameters of a stack have a centre, `loc`.

    Args:
        model: The model to approximate.
        scale: The initial standard deviation of each entry.
        noise_scale: The initial factor of the conditional noise.
        seed: The seed of the initial location.
    """

    def __init__(
        self, model: GuidedModel, *, scale: float = 0.05, noise_scale: float = NOISE_SCALE, seed: int = 0
    ) -> None:
        if scale <= 0:
            raise ValueError(f"scale should be positive, and is {scale}.")
        self._initial_scale = scale
        super().__init__(model, noise_scale=noise_scale, seed=seed)

    def config(self) -> dict[str, Any]:
        """The arguments, beside the model, that make this guide again."""
        return {"scale": self._initial_scale, "noise_scale": self.initial_noise_scale, "seed": self.seed}

    def _set_location(self, stack: FactorStack, latent: Tensor) -> None:
        with torch.no_grad():
            cast(Tensor, self._own(stack).loc).copy_(latent)
