"""`bayeslora report`: a page about a fit, with its ArviZ file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayeslora_pyro.cli.errors import CommandError
from bayeslora_pyro.cli.loaded import LoadedRun
from bayeslora_pyro.cli.plans import Plan
from bayeslora_pyro.cli.terminal import say, tracked, working
from bayeslora_pyro.diagnostics import report, to_arviz
from bayeslora_pyro.tasks import Examples

__all__ = ["run"]

_MOST_TRAINING_ITEMS = 2000
"""Up to how many k-hat, which scores each of them with each draw, is computed unasked."""


def run(plan: Plan) -> None:
    """Writes the page."""
    options, opened = plan.options, LoadedRun(plan)
    record = opened.record
    name, fitted = record["data"]["name"], record["options"]
    first = opened.members[0]
    if not first.site_dims and not first.depends_on_items:
        raise CommandError(
            f"{plan.folder} was fitted by {fitted['method']}, which has no posterior to report on"
        )
    if options["shift"] and record["data"]["kind"] == "text":
        raise CommandError(
            f"--shift {options['shift'][0]}: the page compares no sets of plain texts: leave it out, and give it to "
            "evaluate"
        )
    sets: dict[str, Examples | None] = {name: None}
    if record["data"]["test"] or options["shift"]:
        sets |= opened.test_set("leave out --shift, whose sets are compared with it")
    sets |= opened.shifts(options, record["data"]["test"], taken={name})
    containers = {key: _collect(opened, options, key, sets[key], is_first=key == name) for key in sets}
    path = Path(options["output"] or plan.folder / "report.html")
    with working("writing the page"):
        title = f"{fitted['method']} on {fitted['model']}, {name}"
        report(containers.pop(name), path, shifts=containers, title=title)
    say(f"Wrote {path} and, for ArviZ, {path.with_suffix('.nc')}.")


def _collect(
    opened: LoadedRun, options: Mapping[str, Any], name: str, examples: Examples | None, *, is_first: bool
) -> Any:
    """Draws, with the predictions of a set; for the first, the training set is scored too, for k-hat."""
    train = opened.record["data"]["train"]
    wanted = train <= _MOST_TRAINING_ITEMS if options["khat"] is None else options["khat"]
    scored = is_first and wanted and examples is not None
    return to_arviz(
        opened.posterior,
        None if examples is None else tracked(opened.loader(examples), name),
        fitted_to=tracked(opened.loader(opened.data.splits.train), "training set") if scored else None,
        num_draws=options["num_draws"],
        seed=options["seed"],
    )
