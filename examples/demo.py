"""A language model that knows when it does not know: MiniLM on 400 movie sentences, and on two shifts.

Fits LoRA and Bayesian-LoRA (mean field and flow) with the same data, batches and steps; evaluates them on 1,000 test
sentences, and on 600 product reviews and 600 tweets that none of them has seen the like of. `lora+ts` is LoRA with a
temperature fitted on 400 further labelled sentences, a strong rival that sees twice as many labels.

    python examples/demo.py --seeds 1 --output runs/demo
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bayeslora_pyro import METHODS, FitConfig, FitResult, Posterior, report, to_arviz
from bayeslora_pyro.adapters import add_lora
from bayeslora_pyro.checkpoints import replace_file
from bayeslora_pyro.metrics import evaluate_log_probs, temperature_scale
from bayeslora_pyro.tasks import Examples, load_base_model, load_task, make_loader, split

SHIFTS = ("amazon", "tweets")
SHOWN = ("accuracy", "nll", "ece", "brier")
Scores = dict[str, dict[str, float]]


def load_sets(seed: int, num_test: int) -> dict[str, Examples]:
    """The sets of a seed: the training set depends on it, the others do not."""
    own = split(load_task("sentiment"), train=400, tuning=400, test=num_test, seed=seed)
    num_shift = num_test * 3 // 5
    shifts = {name: split(load_task(name), train=0, tuning=0, test=num_shift, seed=0).test for name in SHIFTS}
    return {"train": own.train, "tuning": own.tuning, "sentiment": own.test} | shifts


def fit_method(name: str, sets: dict[str, Examples], seed: int, num_steps: int) -> tuple[FitResult, Any, int]:
    """Fits one method; returns the result, the tokenizer and the number of draws."""
    base_model, tokenizer = load_base_model("minilm", task_type="classification", num_labels=2, seed=seed)
    peft_model = add_lora(base_model, task_type="SEQ_CLS", target_modules=["query", "value"], seed=seed)
    recipe = METHODS[name](peft_model, "classification", len(sets["train"]), seed=seed)
    loader = make_loader(
        sets["train"], tokenizer, batch_size=16, shuffle=True, group_by_length=True, seed=seed, max_length=64
    )
    return recipe.fit(loader, num_steps=num_steps), tokenizer, recipe.num_draws


def evaluation_loader(examples: Examples, tokenizer: Any) -> Any:
    """Batches for evaluation, of items of similar length."""
    return make_loader(examples, tokenizer, batch_size=64, shuffle=False, group_by_length=True, max_length=64)


def evaluate(
    posterior: Posterior, sets: dict[str, Examples], tokenizer: Any, num_draws: int
) -> tuple[Scores, Scores]:
    """Scores a posterior on the test set and the shifts, as it is and with a temperature from the tuning set."""
    tuning = (
        posterior.predict(evaluation_loader(sets["tuning"], tokenizer), num_draws) if num_draws == 1 else None
    )
    temperature = temperature_scale(tuning.log_probs[0], tuning.labels) if tuning else 1.0
    plain, scaled = {}, {}
    for name in ("sentiment", *SHIFTS):
        prediction = posterior.predict(evaluation_loader(sets[name], tokenizer), num_draws)
        plain[name] = prediction.evaluate()
        scaled[name] = evaluate_log_probs(
            (prediction.log_probs / temperature).log_softmax(-1), prediction.labels
        )
    return plain, scaled


def run_seed(seed: int, num_steps: int, num_test: int, output: Path, console: Console) -> dict[str, Scores]:
    """Fits and evaluates all methods with one seed; the first seed also writes the report of the flow."""
    sets, scores = load_sets(seed, num_test), {}
    for name in ("lora", "bayesian-lora-mf", "bayesian-lora"):
        console.print(f"[bold]{name}[/bold], seed {seed}: {num_steps} steps of 16 sentences")
        start = time.perf_counter()
        result, tokenizer, num_draws = fit_method(name, sets, seed, num_steps)
        fitted = time.perf_counter()
        plain, scaled = evaluate(result.posterior, sets, tokenizer, num_draws)
        console.print(
            f"  fitted in {fitted - start:.0f} s, evaluated in {time.perf_counter() - fitted:.0f} s"
        )
        scores[name] = plain
        if name == "lora":
            scores["lora+ts"] = scaled
        if name == "bayesian-lora" and seed == 0:
            posterior = result.posterior
            posterior.metadata |= {"method": name, "base_model": "minilm"}
            posterior.save(output / "posterior")
            container = to_arviz(
                posterior, evaluation_loader(sets["sentiment"].select(range(min(200, num_test))), tokenizer)
            )
            report(container, output / "report.html")
    return scores


def summarise(runs: list[dict[str, Scores]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """The mean and the standard deviation over seeds of every metric, by method and set."""
    return {
        method: {
            name: {
                metric: {
                    "mean": statistics.fmean(run[method][name][metric] for run in runs),
                    "sd": statistics.stdev(run[method][name][metric] for run in runs)
                    if len(runs) > 1
                    else 0.0,
                }
                for metric in metrics
            }
            for name, metrics in sets.items()
        }
        for method, sets in runs[0].items()
    }


def show(summary: dict[str, Any], num_seeds: int, kl_weight: float, console: Console) -> None:
    """Prints the table."""
    title = (
        f"Mean of {num_seeds} seed{'s' * (num_seeds > 1)}; Bayesian-LoRA tempered, KL weight {kl_weight:g}"
    )
    table = Table("set", "method", *SHOWN, title=title)
    for name in ("sentiment", *SHIFTS):
        for method, sets in summary.items():
            table.add_row(name, method, *(f"{sets[name][metric]['mean']:.3f}" for metric in SHOWN))
        table.add_section()
    console.print(table)


def main() -> None:
    """Runs the demo."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds to average over")
    parser.add_argument("--num-steps", type=int, default=600, help="optimizer steps of every method")
    parser.add_argument(
        "--num-test", type=int, default=1000, help="test sentences; three fifths of them per shift"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="where the results go")
    arguments = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    console = Console()
    runs = [
        run_seed(seed, arguments.num_steps, arguments.num_test, arguments.output, console)
        for seed in range(arguments.seeds)
    ]
    summary = summarise(runs)
    text = json.dumps(summary, indent=1)
    replace_file(arguments.output / "metrics.json", lambda path: path.write_text(text, encoding="utf-8"))
    show(summary, arguments.seeds, FitConfig().kl_weight, console)
    console.print(f"Written: {arguments.output / 'metrics.json'} and {arguments.output / 'report.html'}")


if __name__ == "__main__":
    main()
