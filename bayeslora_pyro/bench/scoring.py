"""From the raw predictions of a cell to its figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bayeslora_pyro import metrics
from bayeslora_pyro.bench.cells import NUM_DRAWS
from bayeslora_pyro.bench.data import TEST, TUNING
from bayeslora_pyro.bench.predictions import Raw

__all__ = ["BLOB_BATCH", "MANY", "MEAN", "PLAIN", "SCALED", "Variant", "score", "variants"]

PLAIN, SCALED, MEAN, MANY = "", "+ts", "+mean", "+many"
"""The ways to read the predictions of a cell: as they are, with a temperature, at the mean, with many draws."""

BLOB_BATCH = 4
"""The number of items in a batch of the published evaluation, over whose means its NLL is averaged."""


@dataclass(frozen=True)
class Variant:
    """One way to read the predictions of a cell.

    Args:
        name: One of :data:`PLAIN`, :data:`SCALED`, :data:`MEAN` and :data:`MANY`.
        num_draws: The number of draws; 0 at the mean.
        log_probs: The log-probabilities of each set by name, `(draw, item, class)`.
        temperature: The temperature that they were divided by.
    """

    name: str
    num_draws: int
    log_probs: dict[str, Tensor]
    temperature: float | None = None


def variants(
    raw: Mapping[str, Raw], *, members: int, many_draws: int, blob_compat: bool = False
) -> Iterator[Variant]:
    """All ways to read the predictions of a cell.

    The first N draws are the draws of N. A temperature is fitted on the tuning set, to the average of as many draws.

    Args:
        raw: The predictions by set.
        members: The number of members, each of which counts; 1 for a method that draws.
        many_draws: The number of draws of the average that is kept beside them.
        blob_compat: Whether to average an ensemble's logits instead of its probabilities, as was published.
    """
    kept = len(raw[TEST].log_probs)
    counts = (kept,) if members > 1 or kept == 1 else tuple(n for n in NUM_DRAWS if n <= kept)
    for count in counts:
        draws = {name: own.log_probs[:count] for name, own in raw.items()}
        if blob_compat and members > 1:
            draws = {name: _of_mean_logits(own) for name, own in draws.items()}
        yield Variant(PLAIN, count, draws)
        temperature = metrics.temperature_scale(draws[TUNING], raw[TUNING].labels)
        scaled = {name: _scaled(own, temperature) for name, own in draws.items()}
        yield Variant(SCALED, count, scaled, temperature)
    for name, part, count in ((MEAN, "mean", 0), (MANY, "many", many_draws)):
        if getattr(raw[TEST], part) is not None:
            yield Variant(name, count, {key: getattr(own, part) for key, own in raw.items()})


def score(
    raw: Mapping[str, Raw], *, members: int, many_draws: int, blob_compat: bool = False
) -> list[dict[str, Any]]:
    """The figures of a cell, one row for each set but the tuning set, and each way to read the predictions.

    Args:
        raw: The predictions by set.
        members: See :func:`variants`.
        many_draws: See :func:`variants`.
        blob_compat: Whether to repeat the published quirks: that of :func:`variants`, and the NLL as the unweighted
            mean of the means of batches of four, the last of which may be smaller.

    Returns:
        Rows of `set`, `variant`, `draws`, `temperature`, the figures of
        :func:`~bayeslora_pyro.metrics.evaluate_log_probs`, and for shifts `auroc_entropy` and `auroc_information`,
        whether uncertainty tells their items from those of the test set.
    """
    rows = []
    for variant in variants(raw, members=members, many_draws=many_draws, blob_compat=blob_compat):
        for name in (key for key in raw if key != TUNING):
            row: dict[str, Any] = {
                "set": name,
                "variant": variant.name,
                "draws": variant.num_draws,
                "temperature": variant.temperature,
            }
            own, labels = variant.log_probs[name], raw[name].labels
            row |= metrics.evaluate_log_probs(own, labels)
            row["n"] = int(row["n"])
            if blob_compat:
                row["nll"] = _batched_nll(own, labels)
            if name != TEST:
                row |= _apart(variant.log_probs[TEST], own)
            rows.append(row)
    return rows


def _scaled(log_probs: Tensor, temperature: float) -> Tensor:
    """The average of the draws with a temperature. Shape `(1, item, class)`."""
    return (metrics.mean_log_probs(log_probs) / temperature).log_softmax(-1)[None]


def _of_mean_logits(log_probs: Tensor) -> Tensor:
    """The published average of an ensemble: of logits, which is no mixture of its members."""
    return log_probs.double().mean(0).log_softmax(-1)[None]


def _batched_nll(log_probs: Tensor, labels: Tensor) -> float:
    """The unweighted mean of the NLLs of batches."""
    mean = metrics.mean_log_probs(log_probs)
    pairs = zip(mean.split(BLOB_BATCH), labels.split(BLOB_BATCH), strict=True)
    return float(torch.tensor([metrics.nll(own, right) for own, right in pairs]).double().mean())


def _apart(inside: Tensor, outside: Tensor) -> dict[str, float]:
    """Whether uncertainty tells items apart: the total, and where there are several draws, their disagreement."""
    row = {"auroc_entropy": metrics.auroc(metrics.entropy(inside), metrics.entropy(outside))}
    if len(inside) > 1:
        row["auroc_information"] = metrics.auroc(metrics.epistemic(inside), metrics.epistemic(outside))
    return row
