"""`bayeslora evaluate`: the figures of a fit on its test set and under shift."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bayeslora_pyro import metrics
from bayeslora_pyro.cli.errors import CommandError, blame
from bayeslora_pyro.cli.fit import tempering
from bayeslora_pyro.cli.loaded import LoadedRun
from bayeslora_pyro.cli.plans import Plan
from bayeslora_pyro.cli.runs import write_json
from bayeslora_pyro.cli.terminal import figures, say, show_facts, show_table, tracked
from bayeslora_pyro.prediction import Prediction
from bayeslora_pyro.tasks import Examples

__all__ = ["run"]

_COLUMNS = {
    "classification": ("accuracy", "nll", "ece", "brier", "auroc_entropy", "auroc_information"),
    "regression": ("rmse", "mae", "nll", "coverage_50", "coverage_90", "spearman"),
    "text": ("nll", "perplexity", "perplexity_low", "perplexity_high", "perplexity_deviation"),
}
_COLUMNS["choice"] = _COLUMNS["classification"]
_HEADS = {
    "accuracy": "Acc.",
    "nll": "NLL",
    "ece": "ECE",
    "brier": "Brier",
    "rmse": "RMSE",
    "mae": "MAE",
    "coverage_50": "In 50%",
    "coverage_90": "In 90%",
    "spearman": "Spearman",
    "perplexity": "Perplexity",
    "perplexity_low": "from",
    "perplexity_high": "to",
    "perplexity_deviation": "SD draws",
    "auroc_entropy": "AUROC H",
    "auroc_information": "AUROC MI",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class _Scorer:
    """Predicts sets and scores them.

    Args:
        run: The run.
        num_draws: The number of draws.
        seed: Their seed.
        predictive: What is drawn; None for what the method draws.
    """

    run: LoadedRun
    num_draws: int
    seed: int
    predictive: str | None = None

    def predict(self, name: str, examples: Examples) -> Any:
        """Predicts each item with each draw."""
        batches = self._batches(name, examples)
        return self.run.posterior.predict(batches, self.num_draws, self.seed, predictive=self.predictive)

    def score_text(self, name: str, examples: Examples) -> Row:
        """The perplexity of a token under the posterior predictive of whole texts, with its error bars."""
        batches = list(self._batches(name, examples))
        scores = self.run.posterior.log_likelihood(batches, self.num_draws, self.seed)
        tokens = torch.cat([(batch["labels"][:, 1:] != -100).sum(-1) for batch in batches])
        figure = metrics.perplexity(scores, tokens)
        return {
            "nll": figure.nll,
            "perplexity": figure.value,
            "perplexity_low": figure.low,
            "perplexity_high": figure.high,
            "perplexity_of_draws": float(figure.of_draws.mean()),
            "perplexity_deviation": figure.deviation_of_draws,
            "n": len(examples),
            "tokens": int(tokens.sum()),
        }

    def _batches(self, name: str, examples: Examples) -> Any:
        return tracked(self.run.loader(examples), name)


def run(plan: Plan) -> None:
    """Scores a fit, shows the figures, and writes them if asked to."""
    options = plan.options
    opened = LoadedRun(plan)
    sets = _sets(opened, options)
    num_draws = options["num_draws"] or opened.record["num_draws"]
    if num_draws % len(opened.members):
        raise CommandError(
            f"--num-draws {num_draws} is no multiple of the {len(opened.members)} members of the ensemble: give one, "
            "so that each counts alike"
        )
    scorer = _Scorer(opened, num_draws, options["seed"], options["predictive"])
    kind = opened.record["data"]["kind"]
    temperature = _temperature(scorer) if options["temperature"] else None
    rows: dict[str, Row] = {}
    first: Prediction | None = None
    for name, examples in sets.items():
        if kind == "text":
            rows[name] = scorer.score_text(name, examples)
            continue
        prediction = scorer.predict(name, examples)
        rows[name] = _score(prediction, first, temperature)
        first = first or (prediction if isinstance(prediction, Prediction) else None)
    if options["json"]:
        with blame("--json"):
            write_json(Path(options["json"]), rows)
    _show(opened, scorer, rows, temperature)
    if options["json"]:
        say(f"Written to {options['json']}.")


def _sets(opened: LoadedRun, options: Mapping[str, Any]) -> dict[str, Examples]:
    """The sets to score by name, the one to compare with first."""
    if options["data"] is None:
        sets = opened.test_set("give a file with --data")
    else:
        name, examples = opened.other_set(options["data"], "--data")
        sets = {name: examples}
    return sets | opened.shifts(options, len(next(iter(sets.values()))), taken=set(sets))


def _temperature(scorer: _Scorer) -> float:
    """Fits one temperature on the tuning set."""
    kind, tuning = scorer.run.record["data"]["kind"], scorer.run.data.splits.tuning
    if kind not in ("classification", "choice"):
        raise CommandError(f"--temperature is for classes, and this run is for {kind}: leave it out")
    if len(tuning) == 0:
        raise CommandError("--temperature needs a tuning set, and this run has none: fit with --tuning")
    prediction = scorer.predict("tuning", tuning)
    return metrics.temperature_scale(prediction.log_probs, prediction.labels)


def _score(prediction: Any, first: Prediction | None, temperature: float | None) -> Row:
    """The figures of a set; how well uncertainty tells it from the first; and the same with a temperature."""
    row: Row = {**prediction.evaluate()}
    row["n"] = int(row["n"])
    if first is not None:
        row["auroc_entropy"] = metrics.auroc(first.entropy, prediction.entropy)
        row["auroc_information"] = metrics.auroc(first.epistemic, prediction.epistemic)
    if temperature is not None:
        scaled = (metrics.mean_log_probs(prediction.log_probs) / temperature).log_softmax(-1)
        others = replace(prediction, log_probs=scaled[None]).evaluate()
        row["scaled"] = {"temperature": temperature, **others, "n": row["n"]}
    return row


def _show(opened: LoadedRun, scorer: _Scorer, rows: Mapping[str, Row], temperature: float | None) -> None:
    options, record = opened.record["options"], opened.record
    shown = {
        "posterior": f"{options['method']} on {options['model']}, {scorer.num_draws} "
        f"{'draw' if scorer.num_draws == 1 else 'draws'}, seed {scorer.seed}",
        "fitted by": record.get("objective") or tempering(options["method"], record["fit"]["kl_weight"]),
    }
    if temperature is not None:
        shown["temperature"] = f"{temperature:.3f}, fitted on {record['data']['tuning']:,} tuning items"
    show_facts(shown)
    say("")
    columns = [name for name in _COLUMNS[record["data"]["kind"]] if any(name in row for row in rows.values())]
    lines = []
    for name, row in rows.items():
        lines.append([name, figures(row["n"]), *(figures(row.get(column)) for column in columns)])
        if "scaled" in row:
            lines.append(["  scaled", "", *(figures(row["scaled"].get(column)) for column in columns)])
    show_table(["Set", "n", *(_HEADS[column] for column in columns)], lines)
    if "perplexity" in columns:
        say(
            "From, to: where 95 % of perplexities lie when items are drawn again; SD draws: the deviation of draws."
        )
    if "spearman" in columns:
        say(
            "Spearman: the rank correlation of predictive standard deviation and absolute error; 0 is chance."
        )
    if "auroc_entropy" in columns:
        say(
            f"AUROC: how often an item of the set is more uncertain than one of {next(iter(rows))}, by entropy (H) or "
            "by mutual information (MI); 0.5 is chance."
        )
