"""The evidence lower bound, in its parts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro.poutine as poutine
import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer import TraceMeanField_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import kl_divergence
from torch.linalg import LinAlgError  # type: ignore[attr-defined]

__all__ = ["ElboParts", "PartsELBO", "divergence"]


@dataclass(frozen=True)
class ElboParts:
    r"""One estimate of the ELBO, in nats for the whole data set.

    Args:
        log_likelihood: An estimate of :math:`\mathbb{E}_q \log p(y \mid W)`, by the name of the observed site.
        kl: The divergence :math:`\mathrm{KL}(q \,\|\, p)` of each latent site, by name.
    """

    log_likelihood: dict[str, Tensor]
    kl: dict[str, Tensor]

    def loss(self, kl_weight: float = 1.0) -> Tensor:
        """The negative ELBO; with a `kl_weight` other than 1, a tempered one."""
        return kl_weight * _sum(self.kl) - _sum(self.log_likelihood)

    def values(self, num_data: int = 1) -> dict[str, float]:
        """The ELBO (never tempered) and its parts as numbers, divergences summed over stacks.

        Args:
            num_data: What to divide by: the size of the data set for nats per item.
        """
        by_kind: dict[str, list[Tensor]] = defaultdict(list)
        for site, value in self.kl.items():
            by_kind[f"kl_{site.rpartition('.')[2]}"].append(value.detach())
        sums = [
            _sum(self.log_likelihood).detach(),
            *(torch.stack(values).sum() for values in by_kind.values()),
        ]
        log_likelihood, *divergences = (torch.stack(sums) / num_data).tolist()
        kl = sum(divergences)
        numbers = dict(zip(by_kind, divergences, strict=True))
        return {"elbo": log_likelihood - kl, "expected_log_likelihood": log_likelihood, "kl": kl} | numbers

    def first_broken(self) -> str | None:
        """Names the first site whose part is not finite."""
        parts = self.kl | self.log_likelihood
        return next((name for name, value in parts.items() if not bool(value.isfinite())), None)


def _sum(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).sum() if parts else torch.zeros(())


class PartsELBO(TraceMeanField_ELBO):
    """Pyro's `TraceMeanField_ELBO`, with its parts kept apart.

    A divergence that has a closed form needs no log-density, so none is computed for such a site: that of the weights
    given their inducing matrix would cost more than the rest of the step.
    """

    def parts(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> ElboParts:
        """Estimates the parts of the ELBO with one draw.

        Args:
            model: The model.
            guide: The guide.
            args: What both take.
            kwargs: What both take.

        Raises:
            FloatingPointError: If a matrix of a site cannot be factorized, with the site.
        """
        at = _LastSite()
        try:
            with at:
                return self._parts(at, model, guide, *args, **kwargs)
        except LinAlgError as error:
            reason = str(error).partition("\n")[0].rstrip(".")  # Pyro adds the shapes of all sites
            raise FloatingPointError(f"site {at.name!r} cannot be computed ({reason}).") from error

    def _parts(self, at: _LastSite, model: Any, guide: Any, *args: Any, **kwargs: Any) -> ElboParts:
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
        guide_sites: dict[str, Any] = dict(guide_trace.nodes)
        model_sites: dict[str, Any] = dict(model_trace.nodes)
        log_likelihood, kl = {}, {}
        for name, site in model_sites.items():
            if site["type"] != "sample" or type(site["fn"]).__name__ == "_Subsample":
                continue
            at.name = name
            if site["is_observed"]:
                log_likelihood[name] = _total(site, site["fn"].log_prob(site["value"]))
            else:
                kl[name] = _total(site, divergence(guide_sites[name], site)[0])
        return ElboParts(log_likelihood, kl)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The negative ELBO, to be differentiated."""
        return self.parts(model, guide, *args, **kwargs).loss()


class _LastSite(Messenger):
    """Remembers the site, or the plate, that a program has come to."""

    name: str | None = None

    def _pyro_sample(self, msg: Any) -> None:
        self.name = msg["name"]


def _total(site: dict[str, Any], value: Tensor) -> Tensor:
    return scale_and_mask(value, site["scale"], site["mask"]).sum()


def divergence(guide_site: Mapping[str, Any], model_site: Mapping[str, Any]) -> tuple[Tensor, bool]:
    """The divergence of a latent site: the closed form where there is one, else its estimate from the draw at hand.

    Returns:
        The divergence, of the batch shape of the site, and whether it is the closed form.
    """
    q, p, value = guide_site["fn"], model_site["fn"], guide_site["value"]
    try:
        return kl_divergence(q, p), True
    except NotImplementedError:
        return q.log_prob(value) - p.log_prob(value), False
