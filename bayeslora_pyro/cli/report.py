"""`bayeslora report`: a page about a fit, with its ArviZ file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayeslora_pyro.cli.loaded import LoadedRun
from bayeslora_pyro.cli.plans import Plan
from bayeslora_pyro.cli.terminal import say, tracked, working
from bayeslora_pyro.diagnostics import report, to_arviz
from bayeslora_pyro.tasks import Examples

__all__ = ["run"]


def run(plan: Plan) -> None:
    """Writes the page."""
    options, opened = plan.options, LoadedRun(plan.folder, plan.record or {})
    name, kind = opened.record["data"]["name"], opened.record["data"]["kind"]
    if kind in ("classification", "choice"):
        sets = opened.test_set()
        sets |= opened.shifts(options, len(sets[name]), taken={name})
    containers = {key: _collect(opened, options, key, examples) for key, examples in sets.items()}
    first = containers.pop(name)
    path = Path(options["output"] or plan.folder / "report.html")
    with working("writing the page"):
        fitted = opened.record["options"]
        report(first, path, shifts=containers, title=f"{fitted['method']} on {fitted['model']}, {name}")
    say(f"Wrote {path}, and its draws to {path.with_suffix('.nc')}.")


def _collect(opened: LoadedRun, options: Mapping[str, Any], name: str, examples: Examples) -> Any:
    """Draws and predictions of a set; of the test set, how well the guide fits the training set too."""
    return to_arviz(
        opened.posterior,
        tracked(opened.loader(examples), name),
        num_draws=options["num_draws"],
        seed=options["seed"],
    )
