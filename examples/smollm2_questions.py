"""A small decoder on multiple choice: SmolLM2-135M, scored by the mean log-likelihood per token of each option.

Fits LoRA and Bayesian-LoRA on 400 questions of OpenBookQA (or ARC-Easy) and evaluates both on its test set and on
ARC-Challenge, where a model of this size is at chance and should say so.

    python examples/smollm2_questions.py --data-dir DIR --task openbookqa --num-steps 300

`--data-dir` holds the sets as `<task>.<split>.jsonl.gz`; without it they come from the Hugging Face hub.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bayeslora_pyro import METHODS, Choice
from bayeslora_pyro.adapters import add_lora
from bayeslora_pyro.checkpoints import replace_file
from bayeslora_pyro.tasks import (
    default_target_modules,
    faster_dtype,
    load_base_model,
    load_task,
    make_loader,
    split,
)

SHOWN = ("accuracy", "nll", "ece", "brier")

FORM: dict[str, Any] = {"form": "packed", "group_by_length": True}
"""A question stands once, its options behind it: the scores of a row for each, from a third of the tokens."""


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data-dir", default=None, help="a folder of <task>.<split>.jsonl.gz; the hub by default"
    )
    parser.add_argument("--task", choices=("openbookqa", "arc_easy"), default="openbookqa")
    parser.add_argument("--train", type=int, default=400, help="how many training questions")
    parser.add_argument("--test", type=int, default=200, help="how many test questions of each set")
    parser.add_argument("--num-steps", type=int, default=300)
    parser.add_argument("--num-draws", type=int, default=8)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the base model; the faster of the two by default"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/smollm2"))
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else faster_dtype()

    own = split(
        load_task(arguments.task, data_dir=arguments.data_dir),
        train=arguments.train,
        tuning=0,
        test=arguments.test,
        seed=arguments.seed,
    )
    far = load_task("arc_challenge", data_dir=arguments.data_dir)
    sets = {
        arguments.task: own.test,
        "arc_challenge": split(far, train=0, tuning=0, test=arguments.test, seed=0).test,
    }

    console, scores = Console(), {}
    table = Table("set", "method", *SHOWN, title="SmolLM2-135M, option log-likelihoods per token")
    for method in ("lora", "bayesian-lora"):
        base_model, tokenizer = load_base_model(
            "smollm2",
            task_type="choice",
            dtype=dtype,
            attention="eager",  # on a CPU, faster than the fused kernel
        )
        peft_model = add_lora(
            base_model, task_type="CAUSAL_LM", target_modules=default_target_modules("smollm2")
        )
        recipe = METHODS[method](
            peft_model, Choice(length_normalised=True), len(own.train), seed=arguments.seed
        )
        loader = make_loader(own.train, tokenizer, batch_size=8, shuffle=True, seed=arguments.seed, **FORM)
        posterior = recipe.fit(loader, num_steps=arguments.num_steps).posterior
        posterior.save(arguments.output / method)
        for name, examples in sets.items():
            batches = make_loader(examples, tokenizer, batch_size=8, shuffle=False, **FORM)
            prediction = posterior.predict(batches, min(arguments.num_draws, recipe.num_draws))
            scores.setdefault(method, {})[name] = values = prediction.evaluate()
            table.add_row(name, method, *(f"{values[metric]:.3f}" for metric in SHOWN))
    text = json.dumps(scores, indent=1)
    replace_file(arguments.output / "metrics.json", lambda path: path.write_text(text, encoding="utf-8"))
    console.print(table)


if __name__ == "__main__":
    main()
