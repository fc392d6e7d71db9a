"""`bayeslora bench report`: the tables and figures of a benchmark, from its cells alone."""

from __future__ import annotations

from bayeslora_pyro.bench.report import write_report
from bayeslora_pyro.cli.errors import blame
from bayeslora_pyro.cli.plans import Plan
from bayeslora_pyro.cli.terminal import say, working

__all__ = ["run"]


def run(plan: Plan) -> None:
    """Writes the report anew."""
    with blame("DIR"), working("writing the report"):
        written = write_report(plan.folder, num_draws=plan.options["num_draws"])
    say(f"Wrote {written / 'tables.md'}, with LaTeX, CSV and figures beside it.")
