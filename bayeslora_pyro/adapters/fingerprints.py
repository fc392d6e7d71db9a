"""A few weights of a frozen layer, by which base models are told apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["fingerprint", "frozen_weight", "keep_fingerprint", "sample"]

KEPT = "bayeslora_fingerprint"
"""The attribute of a layer that is known by the fingerprint it had, as its weight is no longer all here."""

SAMPLE = 16


def frozen_weight(layer: nn.Module) -> Tensor | None:
    """The weight of a layer; None where it is quantised, or divided among processes."""
    weight = None if KEPT in vars(layer) else getattr(layer, "weight", None)
    return weight if isinstance(weight, Tensor) and weight.is_floating_point() else None


def fingerprint(layer: nn.Module) -> list[Any] | None:
    """The shape and a few entries of the weight of a layer, in JSON; None where it is quantised."""
    if KEPT in vars(layer):
        kept: list[Any] | None = vars(layer)[KEPT]
        return kept
    weight = frozen_weight(layer)
    return None if weight is None else [list(weight.shape), sample(weight)]


def keep_fingerprint(layer: nn.Module) -> None:
    """Has a layer known from now on by the fingerprint that it has, before its weight is divided among processes."""
    vars(layer)[KEPT] = fingerprint(layer)


def sample(weight: Tensor) -> list[float]:
    """Some entries of a weight, evenly spread."""
    flat = weight.detach().flatten()
    values = flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE].to("cpu", torch.float64)
    return [float(f"{value:.8g}") for value in values.tolist()]
