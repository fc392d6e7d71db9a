"""How a method differs from LoRA on the same items."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from bayeslora_pyro.bench.lines import HEADLINE_DRAWS, Group, headlines, lines_of
from bayeslora_pyro.bench.scoring import variants
from bayeslora_pyro.bench.storing import StoredCell
from bayeslora_pyro.metrics import mean_log_probs

__all__ = ["Difference", "differences", "interval_of_mean", "item_scores"]

REFERENCE = "lora"

Interval = tuple[float, float, float]
"""A mean, and the ends of its interval."""

Key = tuple[str, str, int]
"""A method, a way to read its predictions, a number of draws."""


@dataclass(frozen=True)
class Difference:
    """A method less LoRA.

    Args:
        label: The method.
        num_seeds: The number of seeds that both have.
        intervals: The mean difference of each score, and its interval.
    """

    label: str
    num_seeds: int
    intervals: dict[str, Interval]


def item_scores(log_probs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The scores whose means are accuracy, NLL and Brier score. Shape `(item,)` each.

    Args:
        log_probs: The log-probabilities `(draw, item, class)`.
        labels: The labels `(item,)`.
    """
    mean = mean_log_probs(log_probs)
    return {
        "accuracy": (mean.argmax(-1) == labels).double(),
        "nll": -mean.gather(1, labels[:, None])[:, 0],
        "brier": (mean.exp() - one_hot(labels, mean.shape[1])).square().sum(-1),
    }


def differences(group: Group, name: str, num_draws: int = HEADLINE_DRAWS) -> list[Difference]:
    r"""The differences of all methods to LoRA, averaged over seeds, with an interval over items.

    .. math:: \Delta_n = \frac{1}{S} \sum_s \big( \ell_{s,n} - \ell^{\mathrm{LoRA}}_{s,n} \big)

    Items are resampled, seeds are not: all seeds have the same items, and the spread over seeds stands elsewhere.

    Args:
        group: The cells.
        name: The set.
        num_draws: The number of draws of all methods that draw.

    Raises:
        ValueError: If the cells hold other items, or hold them in another order.
    """
    _check_items(group, name)
    wanted = {
        (line.method, line.variant, line.draws): line.label
        for line in headlines(lines_of(group, name), num_draws)
    }
    scores: dict[Key, dict[int, dict[str, Tensor]]] = {}
    for stored in group.cells:
        for key, own in _scores_of(stored, name).items():
            if key in wanted:
                scores.setdefault(key, {})[stored.cell.seed] = own
    reference = next((own for key, own in scores.items() if key[:2] == (REFERENCE, "")), {})
    return [
        _difference(label, scores[key], reference)
        for key, label in wanted.items()
        if key[:2] != (REFERENCE, "") and set(scores[key]) & set(reference)
    ]


def interval_of_mean(values: Tensor, num_resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of :func:`bayeslora_pyro.metrics.bootstrap` for a mean, all resamples at once.

    Args:
        values: A number of each item. Shape `(item,)`.
        num_resamples: The number of resamples.
        seed: The seed of the resampling.
    """
    generator = torch.Generator().manual_seed(seed)
    count = len(values)
    means = values[torch.randint(count, (num_resamples, count), generator=generator)].mean(-1)
    low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return low, high


def _check_items(group: Group, name: str) -> None:
    known = {stored.cell.name: stored.raw()[name].labels for stored in group.cells}
    first, *others = known
    for other in others:
        if not torch.equal(known[first], known[other]):
            raise ValueError(
                f"{first} and {other} have other items in the set {name}, or another order of them, as versions differ "
                "in how they split: do them anew with overwrite, or report them apart."
            )


def _scores_of(stored: StoredCell, name: str) -> dict[Key, dict[str, Tensor]]:
    raw = stored.raw()
    found = variants(
        raw,
        members=stored.record["members"],
        many_draws=stored.record["method"]["num_draws"],
        blob_compat=stored.protocol.blob_compat,
    )
    return {
        (stored.cell.method, variant.name, variant.num_draws): item_scores(
            variant.log_probs[name], raw[name].labels
        )
        for variant in found
    }


def _difference(
    label: str, ours: dict[int, dict[str, Tensor]], theirs: dict[int, dict[str, Tensor]]
) -> Difference:
    seeds = sorted(set(ours) & set(theirs))
    intervals: dict[str, Interval] = {}
    for metric in ours[seeds[0]]:
        gaps = torch.stack([ours[seed][metric] - theirs[seed][metric] for seed in seeds]).mean(0)
        intervals[metric] = float(gaps.mean()), *interval_of_mean(gaps)
    return Difference(label, len(seeds), intervals)
