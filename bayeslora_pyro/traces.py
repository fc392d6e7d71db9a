"""What is read off traces and draws: values of sites, and names of their dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor

from bayeslora_pyro.types import Weights

__all__ = ["is_named", "site_dims", "stack_values", "stack_weights"]


def is_named(site: Mapping[str, Any]) -> bool:
    """Whether a site is a latent one, whose dimensions have names."""
    return site["type"] == "sample" and "event_dims" in site["infer"]


def site_dims(site: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the dimensions of a site; what stacks share stands outside their plates."""
    plate = ("adapter",) if site["cond_indep_stack"] else ()
    return (*plate, *site["infer"]["event_dims"])


def stack_values(traces: Iterable[poutine.Trace]) -> dict[str, Tensor]:
    """The values of the latent sites of several traces. Shapes `(draw, …)`, by site name."""
    nodes: list[dict[str, Any]] = [trace.nodes for trace in traces]
    draws = [{name: site["value"] for name, site in sites.items() if is_named(site)} for sites in nodes]
    return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}


def stack_weights(draws: Iterable[Weights], num_draws: int) -> dict[str, Tensor]:
    """Draws of the factors side by side, with one of them twice in memory at most.

    Shapes `(draw, L, d_o, d_i)`, by stack name.
    """
    stacked: dict[str, Tensor] = {}
    for index, draw in enumerate(draws):
        for name, value in draw.items():
            if index == 0:
                stacked[name] = value.new_empty(num_draws, *value.shape)
            stacked[name][index] = value
    return stacked
