"""Where the spread of predictions comes from: the inducing matrices, the noise given them, or a random head."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from torch import Tensor

from bayeslora_pyro.isolation import derive_seed, evaluating, local_rng
from bayeslora_pyro.types import Batch

__all__ = ["VarianceShares", "shares_of", "variance_shares"]

INDUCING = ("U", "V")
"""The names of the sites of inducing matrices, plain and whitened."""

Values = Mapping[str, Tensor]
Draw = Callable[[Values, int], tuple[Values, Tensor]]
"""From the sites that are held, and a seed, to the values of all sites and the outputs."""


@dataclass(frozen=True)
class VarianceShares:
    """The parts of a predictive variance.

    Args:
        shares: The share of each source, averaged over items; they add up to 1.
        total: The predictive variance of an item, averaged over items.
        standard_errors: Of the shares, by the number of draws.
    """

    shares: Mapping[str, float]
    total: float
    standard_errors: Mapping[str, float]

    def __str__(self) -> str:
        parts = (
            f"{name} {share:.1%} ± {self.standard_errors[name]:.1%}" for name, share in self.shares.items()
        )
        return f"variance {self.total:.3g}: {', '.join(parts)}"


def variance_shares(
    posterior: Any, batches: Iterable[Batch], num_draws: int = 64, seed: int = 0
) -> VarianceShares:
    r"""Split the variance of the outputs over draws by its sources, by the law of total variance.

    .. math:: \mathrm{Var}\, f = \mathrm{Var}\, \mathbb{E}[f \mid U] + \mathbb{E}\, \mathrm{Var}[f \mid U]

    The sources, each given those before it, where there are any: ``hyper`` (hyper-sites), ``inducing`` (the inducing
    matrices), ``weights`` (where no inducing matrix is above them), ``conditional`` (the weights given their inducing
    matrix), and ``head`` (sites whose names begin so). The outputs are the logits of classes less their mean over
    classes, which alone count, or predicted means of numbers.

    Args:
        posterior: A posterior with a Pyro model and a Pyro guide.
        batches: The items.
        num_draws: The number of draws; each is run once, and once more for each source.
        seed: The seed of the draws.

    Raises:
        ValueError: If the posterior has no latent site, or its outputs are texts.
    """
    kept = list(batches)
    if posterior.is_text or not kept:
        raise ValueError(
            "batches should be items with classes or numbers, and at least one; texts have no shares"
        )
    sources = _sources(list(posterior.site_dims))
    model, guide = posterior.model, posterior.guide

    def draw(held: Values, key: int) -> tuple[Values, Tensor]:
        with local_rng(key):
            trace = poutine.trace(poutine.condition(guide, data=dict(held))).get_trace()
            nodes: dict[str, Any] = dict(trace.nodes)
            weights: dict[str, Tensor] = dict(nodes["_RETURN"]["value"])
            for stack in model.stacks:
                if stack.name not in weights:
                    weights[stack.name] = model.prior_of(stack).sample_weights(stack)
            outputs = [_outputs(model, weights, batch) for batch in kept]
        sites = {name: nodes[name]["value"] for names in sources.values() for name in names}
        return sites, torch.cat(outputs)

    with evaluating(model.adapter.peft_model, model, guide):
        return shares_of(draw, sources, num_draws, seed)


def shares_of(
    draw: Draw, sources: Mapping[str, Sequence[str]], num_draws: int, seed: int = 0
) -> VarianceShares:
    r"""Split the variance of any outputs by the sources of their noise, in their order.

    With :math:`f^{(j)}` a second draw that shares the sources up to `j` with :math:`f`,

    .. math:: D_j = \tfrac12 \mathbb{E} (f - f^{(j)})^2 = \mathbb{E}\, \mathrm{Var}[f \mid s_1, \dots, s_j],

    so that the share of source `j` is :math:`(D_{j-1} - D_j) / D_0`, and :math:`D` is 0 after the last.

    Args:
        draw: Draws all sites given some, and computes the outputs.
        sources: The names of the sites of each source.
        num_draws: The number of pairs of draws.
        seed: The seed of the draws.

    References:
        | Variance Based Sensitivity Analysis of Model Output (Saltelli et al., 2010)
        | https://doi.org/10.1016/j.cpc.2009.09.018
    """
    if num_draws < 2:
        raise ValueError(f"num_draws should be at least 2, got {num_draws}")
    if not sources:
        raise ValueError("the posterior has no latent site, so its predictions have no variance to share out")
    rows = []
    for index in range(num_draws):
        values, outputs = draw({}, derive_seed(seed, "draw", index))
        held: dict[str, Tensor] = {}
        halves = []
        for place, names in enumerate(sources.values()):
            other = draw(held, derive_seed(seed, "redrawn", index, place))[1]
            halves.append((outputs.double() - other.double()).square().mean() / 2)
            held |= {name: values[name] for name in names}
        rows.append(torch.stack(halves))
    left = torch.stack(rows)
    parts = left - torch.nn.functional.pad(left[:, 1:], (0, 1))
    total, means = left[:, 0].mean(), parts.mean(0)
    shares = means / total
    # The share is a ratio of means: its error is that of the residual, by the delta method.
    errors = (parts - shares * left[:, :1]).std(0) / num_draws**0.5 / total
    return VarianceShares(
        dict(zip(sources, shares.tolist(), strict=True)),
        float(total),
        dict(zip(sources, errors.tolist(), strict=True)),
    )


def _sources(sites: Sequence[str]) -> dict[str, list[str]]:
    """The sites of each source, those that others depend on first."""
    inducing = [name for name in sites if name.rpartition(".")[2] in INDUCING]
    weights = [name for name in sites if name.endswith(".W")]
    above = {name.rpartition(".")[0] for name in inducing}
    head = [name for name in sites if name.startswith("head")]
    found = {
        "hyper": [name for name in sites if name not in {*inducing, *weights, *head}],
        "inducing": inducing,
        "weights": [name for name in weights if name.removesuffix(".W") not in above],
        "conditional": [name for name in weights if name.removesuffix(".W") in above],
        "head": head,
    }
    return {source: names for source, names in found.items() if names}


def _outputs(model: Any, weights: Values, batch: Batch) -> Tensor:
    """The outputs of a batch, `(item, …)`, flattened; what an item has not (an option) counts as no variance."""
    moved = {n: v.to(model.adapter.device) if isinstance(v, Tensor) else v for n, v in batch.items()}
    predictive = model.likelihood.distribution(model.run_with(weights, moved), moved)
    if not isinstance(predictive, dist.Categorical):
        return predictive.mean.flatten().cpu()
    known = predictive.logits.isfinite()
    logits = predictive.logits.where(known, predictive.logits.new_zeros(()))
    centred = logits - logits.sum(-1, keepdim=True) / known.sum(-1, keepdim=True)
    return centred.where(known, centred.new_zeros(())).flatten().cpu()
