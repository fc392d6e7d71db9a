"""What a fit left behind beside its draws, factor by factor: divergences, noise scales, sizes of updates."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyro.poutine as poutine
import torch
from numpy.typing import NDArray
from torch import Tensor

from bayeslora_pyro.diagnostics.observations import as_float64
from bayeslora_pyro.diagnostics.protocols import PosteriorLike
from bayeslora_pyro.diagnostics.updates import update_figures
from bayeslora_pyro.elbo import divergence
from bayeslora_pyro.isolation import evaluating, local_rng
from bayeslora_pyro.parameters import count_parameters
from bayeslora_pyro.types import Batch, FactorStack, to_device

__all__ = [
    "Facts",
    "ProgramLike",
    "collect_facts",
    "collect_item_facts",
    "depends_on_items",
    "extra_parameters",
]

Facts = dict[str, dict[str, NDArray[Any]]]
"""Arrays by variable and, within, by stack (of factors) or under ``adapter`` (of adapters)."""


@runtime_checkable
class ProgramLike(Protocol):
    """A posterior that is made of a Pyro model and a Pyro guide."""

    model: Any
    guide: Any


def collect_facts(posterior: PosteriorLike, num_draws: int, seed: int) -> dict[str, NDArray[Any]]:
    r"""Collect what is known of each factor and each adapter, as far as the posterior knows it.

    Args:
        posterior: The posterior.
        num_draws: The number of draws for a divergence without a closed form.
        seed: The seed of the draws.

    Returns:
        By factor, in the order of the stacks: ``factor_kl``, the divergence of the latent site of each factor, and
        ``noise_scale``, its :math:`\lambda`. By adapter: ``mean_update_norm`` and ``mean_update_rank`` of the mean
        update :math:`\mathbb{E}[B]\,\mathbb{E}[A]`, and ``mean_update_change``, the norm of that update, scaled as
        the language model applies it, beside that of the weight it is added to.
    """
    if not isinstance(posterior, ProgramLike):
        return {}
    divergences = _divergences(posterior, num_draws, seed)
    scales = {stack.name: _noise_scale(posterior.guide, stack) for stack in posterior.stacks}
    facts = _joined("factor_kl", posterior.stacks, divergences)
    facts |= _joined("noise_scale", posterior.stacks, {n: s for n, s in scales.items() if s is not None})
    return facts | _mean_update(posterior)


def depends_on_items(posterior: PosteriorLike) -> bool:
    """Whether the posterior knows something of each item, before any draw."""
    return bool(getattr(posterior, "depends_on_items", False))


def collect_item_facts(posterior: Any, batches: Iterable[Batch]) -> dict[str, NDArray[Any]]:
    r"""Collect what a posterior says of each item before any draw.

    Args:
        posterior: A posterior that depends on items.
        batches: The items.

    Returns:
        ``alpha``, the size of the noise of each factor that an item sees, `(item, factor)`; NaN for the factors that
        have none.
    """
    model, guide = posterior.model, posterior.guide
    rows = []
    with evaluating(model.adapter.peft_model, model, guide):
        for batch in batches:
            here = to_device(batch, model.adapter.device)
            local, count = guide.local_posteriors(here), model.likelihood.num_items(here)
            parts = [
                as_float64(local[stack.name].mean[..., -1])
                if stack.name in local
                else np.full((count, len(stack)), np.nan)
                for stack in model.stacks
            ]
            rows.append(np.concatenate(parts, axis=-1))
    return {"alpha": np.concatenate(rows)}


def extra_parameters(posterior: Any) -> int | None:
    """Count the parameters that come on top of LoRA and the head, where the posterior has a model and a guide."""
    if not isinstance(posterior, ProgramLike):
        return None
    return count_parameters(posterior.model, posterior.guide).extra


def _divergences(posterior: Any, num_draws: int, seed: int) -> dict[str, Tensor]:
    """The divergence of the latent site of each factor, `(L,)` by stack name; closed forms where there are any."""
    model, guide = posterior.model, posterior.guide
    latent = {stack.name: model.prior_of(stack).latent for stack in model.stacks}
    sites = {name: f"{name}.{site}" for name, site in latent.items() if site is not None}
    found: dict[str, list[Tensor]] = {name: [] for name in sites}
    with evaluating(model, guide):
        for draw in range(num_draws):
            with local_rng(seed, "draw", draw):
                q = poutine.trace(guide).get_trace()
            p = poutine.trace(poutine.replay(model.sample_weights, trace=q)).get_trace()
            closed = True
            for name, site in sites.items():
                value, is_closed = divergence(q.nodes[site], p.nodes[site])
                found[name].append(value)
                closed = closed and is_closed
            if closed:
                break
    return {name: torch.stack(values).mean(0) for name, values in found.items()}


def _noise_scale(guide: Any, stack: FactorStack) -> Tensor | None:
    try:
        scale: Tensor = guide.noise_scale(stack)
    except AttributeError:  # a stack whose weights have no noise of their own
        return None
    return scale


def _joined(
    name: str, stacks: Sequence[FactorStack], values: Mapping[str, Tensor]
) -> dict[str, NDArray[Any]]:
    """Factor after factor, NaN where a stack has no value; nothing if none has."""
    if not values:
        return {}
    parts = [
        as_float64(values[stack.name]) if stack.name in values else np.full(len(stack), np.nan)
        for stack in stacks
    ]
    return {name: np.concatenate(parts)}


def _mean_update(posterior: Any) -> dict[str, NDArray[Any]]:
    means = {name: weights[None] for name, weights in posterior.mean_adapter().items()}
    figures = {f"mean_{name}": values[0] for name, values in update_figures(means, posterior.stacks).items()}
    if not figures:
        return {}
    adapter = posterior.model.adapter
    modules = dict.fromkeys(module for stack in posterior.stacks for module in stack.adapters)
    frozen = [adapter.frozen_weight(module) for module in modules]
    norms = [None if weight is None else float(weight.detach().norm()) for weight in frozen]
    sizes = np.array(
        [norm or np.nan for norm in norms]
    )  # nothing to compare with where it is quantised, or zero
    scalings = np.array([adapter.scaling(module) for module in modules])
    return figures | {"mean_update_change": figures["mean_update_norm"] * scalings / sizes}
