"""One HTML page about a posterior, with the ArviZ file it was made from beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayeslora_pyro.diagnostics import page_checks, page_numbers, page_posterior, page_predictions
from bayeslora_pyro.diagnostics.arrays import Container, datasets, sampled, save_arviz
from bayeslora_pyro.diagnostics.page import Html, document
from bayeslora_pyro.diagnostics.scored import Scored, ScoredNumbers, ScoredSet, ScoredTexts, score

__all__ = ["report"]

FIRST = "in distribution"
"""What the page calls the data of the container itself."""

PAGES: tuple[tuple[type[Scored], Any], ...] = (
    (ScoredSet, page_predictions),
    (ScoredNumbers, page_numbers),
)
"""The sections that show each kind of scored predictions."""


def report(
    container: Container,
    path: str | os.PathLike[str],
    shifts: Mapping[str, Container] | None = None,
    title: str | None = None,
) -> Path:
    """Write a self-contained page about a posterior, and the ArviZ file of the same name beside it.

    The page asks nothing of the network and reads in light and in dark. What the container does not hold
    (labels, predictions, a history) is left out. What :func:`~bayeslora_pyro.diagnostics.alarms` finds is shown.

    Args:
        container: What :func:`~bayeslora_pyro.diagnostics.to_arviz` returned.
        path: The page, such as ``runs/demo/report.html``; the draws go to ``runs/demo/report.nc``. Missing
            folders are made.
        shifts: Containers of the same posterior on other data, by name, to compare with.
        title: The heading, by default the method and the base model of the metadata.

    Returns:
        The path of the page.

    Raises:
        ValueError: If the path names no page or the container holds no posterior.
    """
    path = Path(path)
    if path.suffix not in (".html", ".htm"):
        raise ValueError(
            f"path should end in .html, got {os.fspath(path)!r}; the ArviZ file is written beside it"
        )
    if sampled(container) is None:
        raise ValueError(
            f"container should have a group posterior, got {sorted(datasets(container))}: use to_arviz"
        )
    draws = save_arviz(container, path.with_suffix(".nc"))
    sets = {name: score(each) for name, each in {FIRST: container, **(shifts or {})}.items()}
    page = _page(container, sets, draws.name, title)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_text(page, encoding="utf-8")
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    return path


def _page(container: Container, sets: Mapping[str, Scored | None], draws: str, title: str | None) -> Html:
    attrs = container.attrs
    known = [str(attrs[name]) for name in ("method", "base_model") if name in attrs]
    drawn = sampled(container)
    num_draws = 0 if drawn is None else drawn.sizes["chain"] * drawn.sizes["draw"]
    fitted = f"fitted to {int(attrs['num_data']):,} items" if "num_data" in attrs else ""
    lead, parts = _predictions(sets, num_draws)
    parts += [
        page_posterior.findings(container),
        page_checks.checks(container),
        page_posterior.training(container),
        page_posterior.adapters(container),
        page_posterior.noise(container),
        page_posterior.posterior_table(container),
        page_posterior.importance(container),
        page_posterior.provenance(container, draws),
    ]
    about = (
        page_posterior.chains(container),
        fitted,
        page_posterior.tempering(attrs),
        page_posterior.centring(attrs),
    )
    return document(
        title or " on ".join(known) or "Posterior report",
        ", ".join(part for part in about if part),
        lead,
        [part for part in parts if part is not None],
    )


def _predictions(sets: Mapping[str, Scored | None], num_draws: int) -> tuple[str, list[Html | None]]:
    """The finding in a sentence, and the sections about predictions; other sets as far as they are alike."""
    first = sets[FIRST]
    for kind, page in PAGES:
        if isinstance(first, kind):
            alike: dict[str, Any] = {name: each for name, each in sets.items() if isinstance(each, kind)}
            return page.lead(first, num_draws), [
                page.headline(first),
                page.calibration(alike),
                page.sets_table(alike),
                page.uncertainty(first),
            ]
    if isinstance(first, ScoredTexts):
        scores = first.predictive
        return (
            f"On {len(scores):,} texts, averaged over {num_draws:,} draws, the predictive log-likelihood of a text is "
            f"{float(scores.mean()):.1f} nats.",
            [],
        )
    return f"{num_draws:,} draws from the posterior, without labelled predictions to judge them by.", []
