"""The sections of a report about predicted numbers: how close, how calibrated, how aware of their errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor

from bayeslora_pyro import metrics
from bayeslora_pyro.diagnostics.figures import histogram_figure
from bayeslora_pyro.diagnostics.figures_numbers import coverage_figure, prediction_figure, spread_figure
from bayeslora_pyro.diagnostics.page import Html, figure, pair, paragraph, section, table, tiles
from bayeslora_pyro.diagnostics.scored import ScoredNumbers

__all__ = ["calibration", "headline", "lead", "sets_table", "uncertainty"]

NUM_RESAMPLES = 300

TILES = {
    "RMSE": "Error (RMSE)",
    "NLL": "Negative log-likelihood",
    "In 50%": "In 50% intervals",
    "In 90%": "In 90% intervals",
    "Spearman": "Spearman, sd and error",
}
"""The figures of the headline, by what the table calls them."""

FIGURES: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], float], str]] = {
    "RMSE": (lambda loc, scale, observed: metrics.rmse(loc, observed), "{:.3g}"),
    "MAE": (lambda loc, scale, observed: metrics.mae(loc, observed), "{:.3g}"),
    "NLL": (metrics.gaussian_mixture_nll, "{:.3f}"),
    "In 50%": (partial(metrics.interval_coverage, level=0.5), "{:.1%}"),
    "In 90%": (partial(metrics.interval_coverage, level=0.9), "{:.1%}"),
    "Spearman": (metrics.error_correlation, "{:.2f}"),
}
"""The figures of a set by name, and how they are written."""


def lead(scored: ScoredNumbers, num_draws: int) -> str:
    """Say in a sentence or two what the predictions are worth."""
    items = len(scored.observed)
    error = metrics.rmse(scored.loc, scored.observed)
    spread = float(scored.observed.std(correction=0))
    covered = metrics.interval_coverage(scored.loc, scored.scale, scored.observed, 0.9)
    opening = (
        f"On {items:,} items, averaged over {num_draws:,} draws, predictions are off by {error:.3g} (root mean square; "
        f"the observations themselves spread by {spread:.3g}), and the 90% intervals hold {covered:.1%} of them."
    )
    if abs(covered - 0.9) < 1.96 * (0.09 / items) ** 0.5:
        return f"{opening} So many items show the intervals neither too narrow nor too wide."
    return f"{opening} The intervals are too {'narrow' if covered < 0.9 else 'wide'}."


def headline(scored: ScoredNumbers) -> Html:
    """Show the figures that count, each with its bootstrap interval."""
    entries = []
    for key, name in TILES.items():
        metric, form = FIGURES[key]
        low, high = metrics.bootstrap(
            lambda loc, scale, observed, of=metric: of(loc.T, scale.T, observed),
            scored.loc.T,
            scored.scale.T,
            scored.observed,
            num_resamples=NUM_RESAMPLES,
        )
        value = form.format(metric(scored.loc, scored.scale, scored.observed))
        entries.append((name, value, f"{form.format(low)} to {form.format(high)}"))
    return tiles(entries)


def calibration(sets: Mapping[str, ScoredNumbers]) -> Html:
    """Show predictions with error bars, and the coverage of intervals."""
    first = next(iter(sets.values()))
    predicted = (
        "Predicted against observed: predictive means of at most 200 items, with bars of one predictive standard "
        "deviation to either side, some two thirds of which should reach the dashed diagonal."
    )
    coverage = (
        "Coverage: the share of observations in the central interval of each level. On the dashed diagonal intervals "
        "hold what they promise, below it they are too narrow. Chance alone stays within the grey band in 95% of the "
        "cases at each level."
    )
    svg = prediction_figure(first.mean.numpy(), first.std.numpy(), first.observed.numpy())
    levels = {name: each.level.numpy() for name, each in sets.items()}
    return section(
        "Can its intervals be believed?",
        pair(figure(svg, predicted), figure(coverage_figure(levels), coverage)),
    )


def sets_table(sets: Mapping[str, ScoredNumbers]) -> Html:
    """Show the figures of each set, and how well uncertainty tells the others from the first."""
    first = next(iter(sets.values()))
    rows = []
    for name, each in sets.items():
        row = [name, f"{len(each.observed):,}"]
        row += [form.format(of(each.loc, each.scale, each.observed)) for of, form in FIGURES.values()]
        if len(sets) > 1:
            row.append("–" if each is first else f"{metrics.auroc(first.epistemic, each.epistemic):.3f}")
        rows.append(row)
    head = ["Set", "Items", *FIGURES]
    caption = (
        "Errors in the units of the target; NLL in nats an item; the share of observations in the central intervals of "
        "two levels. Spearman: the rank correlation of predictive "
        "standard deviation and absolute error; 0 is chance."
    )
    if len(sets) > 1:
        head.append("AUROC")
        caption += (
            " AUROC: how often draws disagree more on an item of the set than of the first; 0.5 is chance."
        )
    return section("In figures", table(caption, head, rows))


def uncertainty(scored: ScoredNumbers) -> Html | None:
    """Show how the predicted deviation goes with the error."""
    if len(scored.observed) < 2:
        return None
    error = (scored.mean - scored.observed).abs()
    wide = error > error.median()
    share = (scored.epistemic / scored.std).square()
    groups = {"smaller errors": share[~wide].numpy(), "larger errors": share[wide].numpy()}
    spread = (
        "Items sorted by predicted standard deviation into eight groups. On the dashed diagonal the error of a group "
        "is what was predicted; a curve that rises to the right finds the large errors."
    )
    epistemic = (
        "The epistemic share of the predictive variance, of the half of the items with the smaller errors and of the "
        "half with the larger ones. Where it tells errors, these lie further to the right."
    )
    return section(
        "Does it know what it does not know?",
        paragraph(
            "The predictive variance has two parts: the noise, which no data take away, and the epistemic part, on "
            "which the draws disagree and which more data could settle."
        ),
        pair(
            figure(spread_figure(scored.std.numpy(), error.numpy()), spread),
            figure(
                histogram_figure("epistemic", "epistemic part", groups, unit="share of the variance"),
                epistemic,
            ),
        ),
    )
