"""The sections of a report about predictions: how right, how calibrated, how aware of their errors."""

from __future__ import annotations

from collections.abc import Mapping

from bayeslora_pyro import metrics
from bayeslora_pyro.diagnostics.figures import histogram_figure, reliability_figure, risk_coverage_figure
from bayeslora_pyro.diagnostics.page import Html, figure, pair, paragraph, section, table, tiles
from bayeslora_pyro.diagnostics.scored import ScoredSet

__all__ = ["calibration", "headline", "lead", "sets_table", "uncertainty"]

NUM_RESAMPLES = 500


def lead(scored: ScoredSet, num_draws: int) -> str:
    """Say in a sentence or two what the predictions are worth."""
    accuracy = metrics.accuracy(scored.mean, scored.labels)
    gap, error = scored.overconfidence()
    opening = (
        f"On {len(scored.labels):,} items, averaged over {num_draws:,} draws, {accuracy:.1%} of the answers "
        f"are right and the mean confidence is {accuracy + gap:.1%}."
    )
    if abs(gap) < max(1.96 * error, 5e-4):
        return f"{opening} So many items show neither over- nor underconfidence on the whole."
    return f"{opening} The model is {'over' if gap > 0 else 'under'}confident by {100 * abs(gap):.1f} points."


def headline(scored: ScoredSet) -> Html:
    """Show the five figures that count, each with its bootstrap interval."""
    mean = scored.mean
    entries = []
    for name, metric, form in (
        ("Accuracy", metrics.accuracy, "{:.1%}"),
        ("Negative log-likelihood", metrics.nll, "{:.3f}"),
        ("Calibration error (ECE)", metrics.ece, "{:.3f}"),
        ("Brier score", metrics.brier, "{:.3f}"),
        ("Risk-coverage area", metrics.aurc, "{:.3f}"),
    ):
        low, high = metrics.bootstrap(metric, mean, scored.labels, num_resamples=NUM_RESAMPLES)
        value = form.format(metric(mean, scored.labels))
        entries.append((name, value, f"{form.format(low)} to {form.format(high)}"))
    return tiles(entries)


def calibration(sets: Mapping[str, ScoredSet]) -> Html:
    """Show reliability diagram and risk-coverage curve."""
    bins = {name: metrics.reliability_bins(each.mean, each.labels) for name, each in sets.items()}
    curves = {name: metrics.risk_coverage(each.mean, each.labels) for name, each in sets.items()}
    reliability = (
        "Reliability: accuracy of the answers given with a confidence, in 15 bins, dots as large as their "
        "share of the items. On the dashed diagonal confidence is what it says; below it is too high. Thin "
        "lines are 95% intervals, pale bands the gaps that add up to the calibration error."
    )
    risk = (
        "Risk and coverage: the error rate if only the most confident answers are given. Confidence that "
        "finds the errors makes the curve fall towards the left, far below the dashed error rate of all."
    )
    return section(
        "Can its confidence be believed?",
        pair(
            figure(reliability_figure(bins), reliability),
            figure(risk_coverage_figure(curves), risk),
        ),
    )


def uncertainty(scored: ScoredSet) -> Html | None:
    """Show how total and epistemic uncertainty differ between right and wrong answers."""
    right = scored.right
    if right.all() or not right.any():
        return None
    parts = (
        ("entropy", "entropy", metrics.entropy(scored.log_probs)),
        ("information", "mutual information", metrics.epistemic(scored.log_probs)),
    )
    figures = []
    for name, quantity, values in parts:
        groups = {"right answers": values[right].numpy(), "wrong answers": values[~right].numpy()}
        detection = metrics.auroc(values[right], values[~right])
        caption = (
            f"The {quantity} of the prediction. A wrong answer has the higher one in {detection:.1%} of all "
            "pairs of a right and a wrong answer (50% would be chance)."
        )
        figures.append(figure(histogram_figure(name, quantity, groups), caption))
    return section(
        "Does it know what it does not know?",
        paragraph(
            "Entropy is the whole uncertainty of a prediction. Mutual information is the part on which the "
            "draws disagree, the epistemic part, that more data could settle."
        ),
        pair(*figures),
    )


def sets_table(sets: Mapping[str, ScoredSet]) -> Html | None:
    """Compare the sets, and say how well uncertainty tells the others from the first."""
    if len(sets) < 2:
        return None
    first, *_ = sets.values()
    rows = []
    for name, each in sets.items():
        figures = metrics.evaluate_log_probs(each.mean, each.labels)
        row = [name, f"{int(figures['n']):,}", f"{figures['accuracy']:.1%}"]
        row += [f"{figures[key]:.3f}" for key in ("nll", "ece", "brier", "aurc")]
        for quantity in (metrics.entropy, metrics.epistemic):
            scores = quantity(first.log_probs), quantity(each.log_probs)
            row.append("–" if each is first else f"{metrics.auroc(*scores):.3f}")
        rows.append(row)
    head = ("Set", "Items", "Accuracy", "NLL", "ECE", "Brier", "AURC", "AUROC, entropy", "AUROC, information")
    caption = (
        "AUROC: how often an item of the set is more uncertain than one of the first set; 0.5 is chance."
    )
    return section("Under shift", table(caption, head, rows))
