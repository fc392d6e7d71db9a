"""A language model that knows when it does not know: MiniLM on 400 movie sentences, and on two shifts.

Fits LoRA and Bayesian-LoRA (mean field and flow) with the same data, batches and steps; evaluates them on 1,000 test
sentences, and on 600 product reviews and 600 tweets that none of them has seen the like of. `lora+ts` is LoRA with a
temperature fitted on 400 further labelled sentences, a strong rival that sees twice as many labels.

    python examples/demo.py --seeds 1 --output runs/demo

Methods and seeds run side by side, one thread each. The base model is in bfloat16 where the processor multiplies that
faster than float32; factors, posterior and metrics are in float32 either way.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bayeslora_pyro import METHODS, FitConfig, FitResult, Posterior, report, to_arviz
from bayeslora_pyro.adapters import add_lora
from bayeslora_pyro.checkpoints import replace_file
from bayeslora_pyro.metrics import evaluate_log_probs, temperature_scale
from bayeslora_pyro.tasks import Examples, faster_dtype, load_base_model, load_task, make_loader, split

SHIFTS = ("amazon", "tweets")
METHODS_SHOWN = ("lora", "bayesian-lora-mf", "bayesian-lora")
SHOWN = ("accuracy", "nll", "ece", "brier")
Scores = dict[str, dict[str, float]]


def load_sets(seed: int, num_test: int) -> dict[str, Examples]:
    """The sets of a seed: the training set depends on it, the others do not."""
    own = split(load_task("sentiment"), train=400, tuning=400, test=num_test, seed=seed)
    num_shift = num_test * 3 // 5
    shifts = {name: split(load_task(name), train=0, tuning=0, test=num_shift, seed=0).test for name in SHIFTS}
    return {"train": own.train, "tuning": own.tuning, "sentiment": own.test} | shifts


def fit_method(
    name: str, train: Examples, seed: int, num_steps: int, dtype: torch.dtype, **options: Any
) -> tuple[FitResult, Any, int]:
    """Fits one method; returns the result, the tokenizer and the number of draws."""
    base_model, tokenizer = load_base_model(
        "minilm",
        task_type="classification",
        num_labels=2,
        dtype=dtype,
        attention="eager",  # for sentences, on a CPU, faster than the fused kernel
        seed=seed,
    )
    peft_model = add_lora(base_model, task_type="SEQ_CLS", target_modules=["query", "value"], seed=seed)
    recipe = METHODS[name](peft_model, "classification", len(train), seed=seed)
    loader = make_loader(
        train, tokenizer, batch_size=16, shuffle=True, group_by_length=True, seed=seed, max_length=64
    )
    return recipe.fit(loader, num_steps=num_steps, **options), tokenizer, recipe.num_draws


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


def run(job: tuple[int, str], arguments: argparse.Namespace, dtype: torch.dtype) -> dict[str, Scores]:
    """Fits and evaluates one method with one seed; the flow of the first seed also writes the report."""
    seed, name = job
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)

    def show_progress(row: dict[str, float]) -> None:
        step = int(row["step"]) + 1
        if step % 100 == 0:
            print(f"{name}, seed {seed}: step {step}, ELBO {row['elbo']:.2f} nats per item", flush=True)

    sets, start = load_sets(seed, arguments.num_test), time.perf_counter()
    result, tokenizer, num_draws = fit_method(
        name, sets["train"], seed, arguments.num_steps, dtype, progress=False, callbacks=[show_progress]
    )
    posterior, fitted = result.posterior, time.perf_counter()
    plain, scaled = evaluate(posterior, sets, tokenizer, num_draws)
    evaluated = time.perf_counter()
    print(
        f"{name}, seed {seed}: fitted in {fitted - start:.0f} s, evaluated in {evaluated - fitted:.0f} s",
        flush=True,
    )
    if name == "bayesian-lora" and seed == 0:
        posterior.metadata |= {"method": name, "base_model": "minilm"}
        posterior.save(arguments.output / "posterior")
        shown = sets["sentiment"].select(range(min(200, arguments.num_test)))
        report(to_arviz(posterior, evaluation_loader(shown, tokenizer)), arguments.output / "report.html")
    return {name: plain} | ({"lora+ts": scaled} if name == "lora" else {})


def run_all(arguments: argparse.Namespace, dtype: torch.dtype) -> list[dict[str, Scores]]:
    """Runs all methods with all seeds, in one process more than there are cores: jobs differ in length."""
    jobs = [(seed, name) for seed in range(arguments.seeds) for name in METHODS_SHOWN]
    num_workers = min(len(jobs), (os.cpu_count() or 1) + 1)
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_workers, mp_context=spawned) as pool:
        results = list(pool.map(partial(run, arguments=arguments, dtype=dtype), jobs))
    runs: list[dict[str, Scores]] = [{} for _ in range(arguments.seeds)]
    for (seed, _), scores in zip(jobs, results, strict=True):
        runs[seed] |= scores
    return runs


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


def show(summary: dict[str, Any], title: str, console: Console) -> None:
    """Prints the table."""
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
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the base model; the faster of the two by default"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="where the results go")
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype) if arguments.dtype else faster_dtype()
    console, start = Console(), time.perf_counter()
    load_sets(0, arguments.num_test)  # downloads happen here, not in several processes at once
    load_base_model("minilm", task_type="classification", num_labels=2)
    console.print(
        f"{', '.join(METHODS_SHOWN)}: {arguments.num_steps} steps of 16 sentences each, "
        f"{arguments.seeds} seed(s), base model in {str(dtype).removeprefix('torch.')}"
    )
    summary = summarise(run_all(arguments, dtype))
    text = json.dumps(summary, indent=1)
    replace_file(arguments.output / "metrics.json", lambda path: path.write_text(text, encoding="utf-8"))
    title = f"Mean of {arguments.seeds} seed(s); Bayesian-LoRA tempered, KL weight {FitConfig().kl_weight:g}"
    show(summary, title, console)
    console.print(
        f"Written: {arguments.output / 'metrics.json'} and {arguments.output / 'report.html'}, "
        f"after {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    main()
