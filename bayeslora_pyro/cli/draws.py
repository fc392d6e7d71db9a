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
    posterior = LoadedRun(plan.folder, plan.record or {}).posterior
    with working("writing draws"):
        paths = posterior.draws(options["num"], folder, options["seed"])
    say(f"Wrote {len(paths)} PEFT folders, {folder / paths[0].name} to {paths[-1].name}.")
    say(f'Each loads with PeftModel.from_pretrained(base_model, "{folder / paths[0].name}").')
