"""`bayeslora draws`: draws from a fit as ordinary PEFT folders."""

from __future__ import annotations

from pathlib import Path

from bayeslora_pyro.cli.loaded import LoadedRun
from bayeslora_pyro.cli.plans import Plan
from bayeslora_pyro.cli.terminal import say, working

__all__ = ["run"]


def run(plan: Plan) -> None:
    """Writes draws, all of them or none."""
    options = plan.options
    folder = Path(options["output"] or plan.folder / "draws")
    posterior = LoadedRun(plan).posterior
    with working("writing draws"):
        paths = posterior.draws(options["num"], folder, options["seed"])
    names = [path.name for path in paths]
    shown = names if len(names) < 4 else [names[0], "…", names[-1]]
    say(f"Wrote {', '.join(shown)} in {folder}.")
    say(f'Each loads with PeftModel.from_pretrained(base_model, "{folder / names[0]}").')
