"""The evidence lower bound, in its parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.enum import get_importance_trace
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import kl_divergence

__all__ = ["ElboParts", "PartsELBO"]


@dataclass(frozen=True)
class ElboParts:
    r"""One estimate of the ELBO, in nats for the whole data set.

    Args:
        expected_log_likelihood: :math:`\mathbb{E}_q \log p(y \mid W)`, scaled to the data set.
        kl: The divergence of each latent site name without its stack (`"V"`, `"W"`), summed over stacks.
    """

    expected_log_likelihood: Tensor
    kl: dict[str, Tensor]

    def total_kl(self) -> Tensor:
        """The divergence of all latent sites."""
        return sum(self.kl.values(), start=torch.zeros_like(self.expected_log_likelihood))

    def loss(self, kl_weight: float = 1.0) -> Tensor:
        """The negative ELBO; with a `kl_weight` other than 1, a tempered one."""
        return kl_weight * self.total_kl() - self.expected_log_likelihood

    def values(self) -> dict[str, float]:
        """The parts as numbers, with the ELBO itself (never tempered)."""
        numbers = {f"kl_{name}": value.item() for name, value in self.kl.items()}
        return {
            "elbo": -self.loss().item(),
            "expected_log_likelihood": self.expected_log_likelihood.item(),
            "kl": self.total_kl().item(),
        } | numbers


class PartsELBO(TraceMeanField_ELBO):
    """Pyro's `TraceMeanField_ELBO`, with its parts kept apart.

    A divergence that has a closed form needs no log-density, so none is computed for such a site: that of the weights
    given their inducing matrix costs more than the rest of the step.
    """

    def parts(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> ElboParts:
        """Estimates the ELBO with one draw.

        Args:
            model: The model.
            guide: The guide.
            args: What both take.
            kwargs: What both take.
        """
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        observed: list[Tensor] = []
        divergences: dict[str, list[Tensor]] = {}
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample" or _is_subsample(site):
                continue
            if site["is_observed"]:
                observed.append(_scaled(site, site["fn"].log_prob(site["value"])))
            else:
                divergences.setdefault(name.rpartition(".")[2], []).append(_divergence(guide_trace.nodes[name], site))
        return ElboParts(torch.stack(observed).sum(), {name: torch.stack(kl).sum() for name, kl in divergences.items()})

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        return self.parts(model, guide, *args, **kwargs).loss()


def _is_subsample(site: dict[str, Any]) -> bool:
    return type(site["fn"]).__name__ == "_Subsample"


def _scaled(site: dict[str, Any], value: Tensor) -> Tensor:
    return scale_and_mask(value, site["scale"], site["mask"]).sum()


def _divergence(guide_site: dict[str, Any], model_site: dict[str, Any]) -> Tensor:
    q, p, value = guide_site["fn"], model_site["fn"], guide_site["value"]
    try:
        kl = kl_divergence(q, p)
    except NotImplementedError:
        kl = q.log_prob(value) - p.log_prob(value)
    return _scaled(model_site, kl)
