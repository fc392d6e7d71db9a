"""The sections of a report about the posterior: how it was fitted, what it learned, how to trust it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from bayeslora_pyro.diagnostics.alarms import alarms
from bayeslora_pyro.diagnostics.arrays import MIN_DRAWS, Container, datasets, pooled, sampled
from bayeslora_pyro.diagnostics.figures import training_figure
from bayeslora_pyro.diagnostics.forest import forest_figure
from bayeslora_pyro.diagnostics.page import Html, definitions, figure, paragraph, section, table
from bayeslora_pyro.diagnostics.summary import khat, summary

__all__ = [
    "adapters",
    "chains",
    "findings",
    "importance",
    "noise",
    "posterior_table",
    "provenance",
    "tempering",
    "training",
]

PARTS = {
    "elbo": "ELBO",
    "expected_log_likelihood": "expected log-likelihood",
    "kl_V": "KL of V",
    "kl_W": "KL of W",
    "kl": "KL, all sites",
    "kl_weight": "KL weight",
}


def tempering(attrs: Mapping[str, Any]) -> str:
    """Say what the KL of the ELBO was weighted with."""
    weight = attrs.get("kl_weight")
    if "laplace" in attrs:
        return "a point, and a Laplace approximation at it"
    if weight is None:
        return "KL weight not recorded"
    weight = float(weight)
    return "untempered ELBO (KL weight 1)" if weight == 1 else f"tempered ELBO (KL weight {weight:g})"


def chains(container: Container) -> str:
    """Say what the chains are: independent fits, or snapshots of fewer."""
    drawn = sampled(container)
    num_chains = 1 if drawn is None else drawn.sizes["chain"]
    num_fits = int(container.attrs.get("num_fits", num_chains))
    fits = "one fit" if num_fits == 1 else f"{num_fits} independent fits"
    return fits if num_fits == num_chains else f"{num_chains} snapshots of {fits}"


def centring(attrs: Mapping[str, Any]) -> str | None:
    """Say that the draws are centred on the mean adapter, if they are."""
    temperature = attrs.get("mean_temperature")
    return (
        None
        if temperature is None
        else f"draws centred on their mean, at temperature {float(temperature):.2f}"
    )


def findings(container: Container) -> Html | None:
    """Show the alarms, if any."""
    rows = [[alarm.name, alarm.message] for alarm in alarms(container)]
    if not rows:
        return None
    return section("What should be looked at", table("Alarms.", ("Alarm", "Finding"), rows, prose=True))


def training(container: Container) -> Html | None:
    """Show the parts of the ELBO over the fit."""
    history = datasets(container).get("constant_data")
    if history is None or "step" not in history.sizes:
        return None
    parts = {}
    others = sorted(str(name) for name in history if str(name).startswith("kl_") and name not in PARTS)
    for name, title in (PARTS | {name: f"KL of {name.removeprefix('kl_')}" for name in others}).items():
        values = history[name].transpose("chain", "step").values if name in history else np.array([])
        if np.isfinite(values).any() and not (name == "kl_weight" and (values == 1).all()):
            parts[title] = (_scale(name, values), values)
    if not parts:
        return None
    caption = (
        "Nats per training item; thin lines are single steps, thick ones running means, and the first steps "
        f"may lie outside a panel. What was maximised: {tempering(container.attrs)}."
    )
    return section("How it was fitted", figure(training_figure(history["step"].values, parts), caption))


def _scale(name: str, values: np.ndarray[Any, Any]) -> str:
    finite = values[np.isfinite(values)]
    wide = finite.min() > 0 and finite.max() > 50 * finite.min()
    return "log" if wide and name.startswith("kl") and name != "kl_weight" else "linear"


def adapters(container: Container) -> Html | None:
    """Show the size of each adapter's update under posterior and prior."""
    groups = datasets(container)
    if "update_norm" not in groups.get("posterior", xr.Dataset()):
        return None
    draws = {
        name: pooled(groups[name]["update_norm"], "adapter")
        for name in ("posterior", "prior")
        if name in groups
    }
    modules = [str(module) for module in groups["posterior"]["adapter"].values]
    caption = (
        "The size ‖BA‖ of the update of each adapted module: median, half and nine tenths of the draws from "
        "the posterior; in grey nine tenths of the draws from the prior. Where blue lies within grey the "
        "data have said little about the size of the update."
    )
    svg = forest_figure(modules, draws["posterior"], draws.get("prior"))
    return section("What it learned", figure(svg, caption), *_ranks(container))


def _ranks(container: Container) -> list[Html]:
    left = datasets(container).get("constant_data", xr.Dataset())
    if "mean_update_rank" not in left:
        return []
    ranks = np.asarray(left["mean_update_rank"].values)
    return [
        paragraph(
            "The effective rank (the exponential of the entropy of the singular values) of the mean update is "
            f"{np.median(ranks):.2f} in the median of the adapters, from {ranks.min():.2f} to {ranks.max():.2f}."
        )
    ]


def noise(container: Container) -> Html | None:
    """Show how noisy the factors are that the items see, where that depends on the item."""
    left = datasets(container).get("constant_data", xr.Dataset())
    if "alpha" not in left:
        return None
    alpha = left["alpha"].mean("chain").dropna("factor")
    mean, sd = alpha.mean("item"), alpha.std("item")
    rows = [
        [str(name), _number(m), _number(s / m)]
        for name, m, s in zip(alpha["factor"].values, mean.values.tolist(), sd.values.tolist(), strict=True)
    ]
    caption = (
        "The variance α of the noise of each factor, relative to the square of its entries: its mean over the items, "
        "and its standard deviation over them as a share of it. Where that is near 0 all items see the same noise."
    )
    return section("How noisy the factors are", table(caption, ("Factor", "Mean α", "Sd / mean"), rows))


def posterior_table(container: Container) -> Html | None:
    """Show what the data taught each variable."""
    if "posterior" not in datasets(container):
        return None
    rows = []
    for name, row in summary(container).to_dict("index").items():
        figures = [_number(row[key]) for key in ("mean", "sd", "prior_sd", "sd_ratio", "r_hat")]
        rows.append([str(name), f"{row['elements']:,}", *figures])
    head = ("Variable", "Elements", "Mean", "Sd", "Prior sd", "Sd / prior sd", "R-hat")
    several = datasets(container)["posterior"].sizes["chain"] > 1
    compared = chains(container) if several else "independent fits, where there are several"
    caption = (
        "Root mean squares over the elements of a variable. Where the ratio of the standard deviations is 1 "
        f"the data taught nothing about it. R-hat compares {compared}."
    )
    return section("The posterior in numbers", table(caption, head, rows))


def importance(container: Container) -> Html | None:
    """Show k-hat and say what it means."""
    stats = datasets(container).get("sample_stats")
    if stats is None or "lp" not in stats:
        return None
    if stats["log_guide"].isnull().any():
        text = (
            "The guide has no density, as it is a point, drops inputs at random, or has noise for each item: "
            "there is no k-hat."
        )
        return section("How good a proposal the guide is", paragraph(text))
    fitted = container.attrs.get("lp_data") == "fitted_to"
    target = "the training data" if fitted else "the items of this report"
    if stats["lp"].sizes["draw"] < MIN_DRAWS:
        text = (
            f"Pareto k-hat needs {MIN_DRAWS} draws of each chain, and there are {stats['lp'].sizes['draw']}."
        )
        return section("How good a proposal the guide is", paragraph(text))
    weight = float(container.attrs.get("kl_weight", 1))
    targets = {f"Posterior given {target}": 1.0}
    if weight != 1:
        targets[f"The same, tempered as fitted (KL weight {weight:g})"] = weight
    rows = []
    for name, kl_weight in targets.items():
        value = khat(container, kl_weight=kl_weight)
        rows.append([name, _number(value), _reading(value)])
    parts = [
        paragraph(
            "Pareto k-hat is the tail index of the importance weights p(y, W) / q(W). It asks whether draws "
            "of the guide could be reweighted into draws of the exact posterior. With very many weights a "
            "large value is the rule and says little about predictions, which the figures above judge "
            "directly."
        ),
        table("The worst over the chains.", ("Target", "k-hat", "Reading"), rows, prose=True),
    ]
    if not fitted:
        parts.append(
            paragraph(
                "The training data were not passed, so this is about a posterior given the items of this "
                "report. Pass fitted_to=train_loader to to_arviz to judge the fit itself."
            )
        )
    return section("How good a proposal the guide is", *parts)


def _reading(value: float) -> str:
    if value < 0.5:
        return "Good: reweighting its draws corrects the guide reliably."
    if value < 0.7:
        return "Usable: reweighting corrects the guide, given many draws."
    return "Poor: a few draws outweigh all others, so reweighting cannot correct the guide."


def provenance(container: Container, file: str) -> Html:
    """Show where all this comes from and how to look further."""
    entries = [(str(name).replace("_", " "), str(value)) for name, value in container.attrs.items()]
    note = f"Draws, predictions and history are beside this page: arviz.from_netcdf({file!r}) reads them."
    return section("Where this comes from", definitions(entries), paragraph(note))


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return "∞" if math.isinf(value) else f"{value:#.3g}".rstrip(".")
