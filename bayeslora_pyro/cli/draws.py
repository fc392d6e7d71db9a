"""`bayeslora draws`: draws from a fit as ordinary PEFT folders."""

from __future__ import annotations

from pathlib import Path

from bayeslora_pyro.cli.errors import blame
from bayeslora_pyro.cli.loaded import LoadedRun
from bayeslora_pyro.cli.plans import Plan
from bayeslora_pyro.cli.terminal import say, working

__all__ = ["run"]

_NUM_DRAWS = 16


def run(plan: Plan) -> None:
    """Writes draws, all of them or none."""
    options = plan.options
    folder = Path(options["output"] or plan.folder / "draws")
    opened = LoadedRun(plan)
    members = len(opened.members)
    number = options["num"] or members * max(1, _NUM_DRAWS // members)
    with blame("--num"), working("writing draws"):
        paths = opened.posterior.draws(number, folder, options["seed"])
    names = [path.name for path in paths]
    shown = names if len(names) < 4 else [names[0], "…", names[-1]]
    say(f"Wrote {', '.join(shown)} in {folder}.")
    say(f'Each loads with PeftModel.from_pretrained(base_model, "{folder / names[0]}").')
