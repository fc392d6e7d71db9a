"""Points, with noise whose size an inference network reads off each item."""

from __future__ import annotations

from typing import Any, Literal, final

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from bayeslora_pyro.adapters import FEATURES, Features, num_features
from bayeslora_pyro.guides.base import NOISE_SCALE, GuidedModel
from bayeslora_pyro.guides.delta import PointGuide
from bayeslora_pyro.isolation import local_rng
from bayeslora_pyro.relative_noise import RelativeNoise
from bayeslora_pyro.types import Batch, FactorStack

__all__ = ["AlphaNet", "AmortisedNoiseGuide"]

Link = Literal["softplus", "exp"]


class AlphaNet(nn.Module):
    r"""The inference network of the sizes of noise, :math:`\alpha(x) = g(\mathrm{MLP}(\phi(x)))`.

    Two hidden layers of SiLU, over features that are first brought to mean 0 and variance 1. Its last layer starts at
    zero, so that :math:`\alpha` starts at a constant.

    Args:
        features: The number of features.
        start: The initial :math:`\alpha` of each factor. Its length is the number of outputs.
        hidden: The number of hidden units of each layer.
        link: The function g, `"softplus"` or `"exp"`.
        seed: The seed of the hidden layers.
    """

    def __init__(
        self, features: int, start: Tensor, *, hidden: int = 256, link: Link = "softplus", seed: int = 0
    ) -> None:
        super().__init__()
        self.link: Link = link
        last = nn.utils.skip_init(nn.Linear, hidden, len(start))
        with torch.no_grad():
            last.weight.zero_()
            # The inverse of softplus, log(exp(x) - 1), without an overflow.
            last.bias.copy_(start.log() if link == "exp" else start + (-torch.expm1(-start)).log())
        with local_rng(seed, "alpha"):
            self.layers = nn.Sequential(
                nn.LayerNorm(features, elementwise_affine=False),
                nn.Linear(features, hidden),
                nn.SiLU(),
                nn.Linear(hidden, hidden),
                nn.SiLU(),
                last,
            ).to(start)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features `(items, features)` to the sizes of noise, `(items, factors)`."""
        raw: Tensor = self.layers(features.to(next(self.parameters()).dtype))
        return raw.exp() if self.link == "exp" else nn.functional.softplus(raw)


@final
class AmortisedNoiseGuide(PointGuide):
    r"""Points, and where the prior has relative noise, an inference network for its size.

    .. math:: q(W \mid x_n) = \mathcal{N}\big(A, \alpha_l(x_n)\, \mathrm{diag}(\mathrm{vec}\, A)^2\big), \qquad
        \alpha(x) = g(\mathrm{MLP}(\phi(x)))

    There is one :math:`\alpha` for each factor and item. An item of several rows, a question with its options, has one
    for all, from the mean of their features. Of a text that is scored, features are only of what comes before. The
    features are those of the frozen base model, and get no gradient; they are had once for a batch.

    Args:
        model: The model to approximate; with :class:`~bayeslora_pyro.models.RelativeNoisePrior` for factors that are to
            have noise.
        features: What :math:`\phi` is: the mean of the input `"embeddings"` (for an image, of its patches), which costs
            next to nothing; the mean of the last hidden states of the `"backbone"` without adapter, a pass more; or
            the first of these, `"cls"`, for encoders that have one.
        hidden: The number of hidden units of the two layers of the network.
        link: What makes :math:`\alpha` positive, `"softplus"` or `"exp"`.
        noise_scale: The initial factor of the conditional noise, where a prior has a conditional.
        seed: The seed of what starts at random.

    References:
        | BaLoRA: Bayesian Low-Rank Adaptation of Large Scale Models (Coscia et al., 2026)
        | https://arxiv.org/abs/2605.08110
    """

    def __init__(
        self,
        model: GuidedModel,
        *,
        features: Features = "embeddings",
        hidden: int = 256,
        link: Link = "softplus",
        noise_scale: float = NOISE_SCALE,
        seed: int = 0,
    ) -> None:
        if features not in FEATURES:
            raise ValueError(f"features should be one of {', '.join(FEATURES)}, and is {features!r}.")
        if link not in ("softplus", "exp"):
            raise ValueError(f"link should be 'softplus' or 'exp', and is {link!r}.")
        if type(hidden) is not int or hidden < 1:
            raise ValueError(f"hidden should be a whole number of at least 1, and is {hidden!r}.")
        self.features: Features = features
        self.hidden = hidden
        self.link: Link = link
        super().__init__(model, noise_scale=noise_scale, seed=seed)
        self.alpha_net: AlphaNet | None = None
        if noisy := self._noisy():
            starts = [model.prior_of(stack).initial_local(stack).mean[:, 1] for stack in noisy]
            size = num_features(model.adapter, features)
            self.alpha_net = AlphaNet(size, torch.cat(starts), hidden=hidden, link=link, seed=seed)

    def config(self) -> dict[str, Any]:
        """The arguments, beside the model, that make this guide again."""
        return {
            "features": self.features,
            "hidden": self.hidden,
            "link": self.link,
            "noise_scale": self.initial_noise_scale,
            "seed": self.seed,
        }

    def local_posteriors(self, batch: Batch) -> dict[str, TorchDistribution]:
        r"""The pairs :math:`(1, \alpha(x))` of the items of a batch, by stack name. Event shape `(L, 2)`."""
        if self.alpha_net is None:
            return {}
        alphas = self.alpha_net(self.model.features(batch, self.features))
        noisy = self._noisy()
        parts = alphas.split([len(stack) for stack in noisy], dim=-1)
        return {
            stack.name: RelativeNoise(torch.stack([torch.ones_like(part), part], dim=-1))
            for stack, part in zip(noisy, parts, strict=True)
        }

    def _noisy(self) -> list[FactorStack]:
        return [stack for stack in self.stacks if self.model.prior_of(stack).local is not None]
