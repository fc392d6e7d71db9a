"""`bayeslora generate`: texts that a fit writes, and how uncertain it is of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bayeslora_pyro.cli.errors import CommandError, blame
from bayeslora_pyro.cli.loaded import LoadedRun
from bayeslora_pyro.cli.plans import Plan
from bayeslora_pyro.cli.runs import write_json
from bayeslora_pyro.cli.terminal import figures, say, working
from bayeslora_pyro.generation import Generation, GenerationByDraw
from bayeslora_pyro.tasks import load_prompts

__all__ = ["run"]

Row = dict[str, Any]

_DECODED = ("choice", "text")
"""The kinds of data whose base model is a decoder."""


def run(plan: Plan) -> None:
    """Writes a text after each prompt, shows it, and writes the figures if asked to."""
    options, opened = plan.options, LoadedRun(plan)
    if (kind := opened.record["data"]["kind"]) not in _DECODED:
        raise CommandError(
            f"{plan.folder} is for {kind}, and writes no text: give a run on text or multiple choice"
        )
    if len(opened.members) > 1:
        raise CommandError(f"{plan.folder} is an ensemble, which cannot write: fit with --num-chains 1")
    with blame("--prompts"):
        prompts = load_prompts(options["prompts"]) if options["prompts"] else (options["prompt"],)
    rows: list[Row] = []
    for first in range(0, len(prompts), options["batch_size"]):
        rows += _write(opened, prompts[first : first + options["batch_size"]], options)
    for row in rows:
        _show(row)
    if options["json"]:
        with blame("--json"):
            write_json(Path(options["json"]), {"by": options["by"], "generations": rows})
        say(f"Written to {options['json']}.")


def _write(opened: LoadedRun, prompts: tuple[str, ...], options: Mapping[str, Any]) -> list[Row]:
    with working("writing"), blame("--prompts" if options["prompts"] else "--prompt"):
        generation = opened.members[0].generate(
            prompts,
            options["num_draws"],
            options["seed"],
            by=options["by"],
            tokenizer=opened.language.tokenizer,
            **{name: options[name] for name in ("max_new_tokens", "temperature", "top_p")},
        )
    return [{"prompt": prompt, **_read(generation, place)} for place, prompt in enumerate(prompts)]


def _read(generation: Generation | GenerationByDraw, place: int) -> Row:
    return (
        _read_together(generation, place)
        if isinstance(generation, Generation)
        else _read_apart(generation, place)
    )


def _read_together(generation: Generation, place: int) -> Row:
    """What a text of all draws was, and how uncertain each of its tokens."""
    mask = generation.mask[place]
    per_token = ("tokens", "entropy", "aleatoric", "epistemic")
    return {
        "text": (generation.texts or ())[place],
        "num_tokens": int(generation.num_tokens[place]),
        "log_prob": float(generation.log_prob[place]),
        **{name: float(getattr(generation, f"sequence_{name}")[place]) for name in per_token[1:]},
        "per_token": {name: getattr(generation, name)[place][mask].tolist() for name in per_token},
    }


def _read_apart(generation: GenerationByDraw, place: int) -> Row:
    """What each draw wrote, and how far they agree."""
    answer, share = generation.majority()[place]
    return {
        "text": answer,
        "share": share,
        "answer_entropy": float(generation.answer_entropy()[place]),
        **{name: float(getattr(generation, name)[place]) for name in ("entropy", "aleatoric", "epistemic")},
        "draws": [
            {
                "text": text,
                "num_tokens": int(number),
                "log_prob": float(own),
                "mixture_log_prob": float(all_draws),
            }
            for text, number, own, all_draws in zip(
                (generation.texts or ())[place],
                generation.num_tokens[:, place],
                generation.log_prob[:, place],
                generation.mixture_log_prob[:, place],
                strict=True,
            )
        ],
    }


def _show(row: Row) -> None:
    say(f"{row['prompt']}{row['text']}")
    parts = ", ".join(f"{name} {figures(row[name])}" for name in ("entropy", "aleatoric", "epistemic"))
    if "share" in row:
        say(f"  {row['share']:.0%} of the draws; {parts} nats")
    else:
        say(f"  {row['num_tokens']} tokens; {parts} nats; log-probability {figures(row['log_prob'])}")
