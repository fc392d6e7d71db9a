"""How positive is a sentence, and would people agree? Mean ratings by MiniLM, held against the spread of their raters.

Twenty people rated each sentence from -4 to 4 (VADER). Fits LoRA and BaLoRA to the means of movie sentences, with one
noise for all sentences (learned) and with a noise for each (predicted, a second output of the head). Does the predicted
standard deviation follow the error? And does the noise follow the standard deviation of the raters, which no model is
shown? Product reviews are a shift.

    python examples/ratings.py --seeds 3 --output runs/ratings
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from bayeslora_pyro import METHODS, Regression, metrics
from bayeslora_pyro.adapters import add_lora
from bayeslora_pyro.checkpoints import replace_file
from bayeslora_pyro.prediction import RegressionPrediction
from bayeslora_pyro.tasks import Examples, faster_dtype, load_base_model, load_task, make_loader, split

SETS = {"movies": "sentiment-regression", "products": "sentiment-regression/amazon"}
SHOWN = {
    "mae": "MAE",
    "nll": "NLL",
    "spearman": "error",
    "spearman_epistemic": "means",
    "raters": "raters",
    "coverage_50": "in 50",
    "coverage_95": "in 95",
}
Noise = Literal["learned", "predicted"]
Scores = dict[str, float]


def load_sets(seed: int, num_train: int, num_test: int) -> dict[str, Examples]:
    """The training set of a seed, and the test sets, which are the same for all seeds."""
    own = split(load_task(SETS["movies"]), train=num_train, tuning=400, test=num_test, seed=seed)
    far = split(load_task(SETS["products"]), train=0, tuning=0, test=num_test, seed=0)
    return {"train": own.train, "movies": own.test, "products": far.test}


def in_units(examples: Examples, mean: float, deviation: float) -> Examples:
    """The examples with targets in units of a deviation."""
    return replace(examples, targets=tuple((target - mean) / deviation for target in examples.targets))


def score(prediction: RegressionPrediction, examples: Examples) -> Scores:
    """The scores, with the rank correlation of the predicted noise and the deviation of the raters."""
    deviations = torch.tensor(examples.deviations, dtype=prediction.loc.dtype)
    known = deviations.isfinite()
    noise = prediction.aleatoric
    raters = metrics.rank_correlation(noise[known], deviations[known]) if noise.std() > 1e-6 else 0.0
    return prediction.evaluate() | {"raters": raters}


def run(method: str, noise: Noise, seed: int, arguments: argparse.Namespace) -> dict[str, Scores]:
    """Fits a method and scores it on both test sets, in points of the rating."""
    sets = load_sets(seed, arguments.num_train, arguments.num_test)
    targets = sets["train"].targets
    units = statistics.fmean(targets), statistics.stdev(targets)
    base_model, tokenizer = load_base_model(
        "minilm",
        task_type="regression",
        num_labels=1 if noise == "learned" else 2,
        dtype=arguments.dtype,
        attention="eager",  # for sentences, on a CPU, faster than the fused kernel
        seed=seed,
    )
    peft_model = add_lora(base_model, task_type="SEQ_CLS", target_modules=["query", "value"], seed=seed)
    recipe = METHODS[method](peft_model, Regression(noise=noise, scale=0.5), len(targets), seed=seed)
    train = make_loader(
        in_units(sets["train"], *units), tokenizer, batch_size=16, shuffle=True, seed=seed, max_length=64
    )
    fitted = recipe.fit(train, num_steps=arguments.num_steps, progress=False).chains
    scores = {}
    for name in SETS:
        loader = make_loader(
            in_units(sets[name], *units), tokenizer, batch_size=64, shuffle=False, max_length=64
        )
        prediction: Any = fitted.predict(loader, recipe.num_draws)
        scores[name] = score(prediction.in_units(*units), sets[name])
    return scores


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["lora", "balora"])
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds to average over")
    parser.add_argument("--num-train", type=int, default=400, help="training sentences")
    parser.add_argument("--num-test", type=int, default=400, help="test sentences of each set")
    parser.add_argument("--num-steps", type=int, default=300, help="optimizer steps of every fit")
    parser.add_argument("--output", type=Path, default=Path("runs/ratings"), help="where the scores go")
    arguments = parser.parse_args()
    arguments.dtype = faster_dtype()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    title = f"Ratings, mean of {arguments.seeds} seed(s); rank correlations with error and raters"
    table = Table("set", "method, noise", *SHOWN.values(), title=title, box=box.SIMPLE)
    results = {
        (method, noise): [run(method, noise, seed, arguments) for seed in range(arguments.seeds)]
        for method in arguments.methods
        for noise in ("learned", "predicted")
    }
    means = {
        name: {
            f"{method}, {noise}": {
                metric: statistics.fmean(scores[name][metric] for scores in runs) for metric in runs[0][name]
            }
            for (method, noise), runs in results.items()
        }
        for name in SETS
    }
    for name, rows in means.items():
        for label, scores in rows.items():
            table.add_row(name, label, *(f"{scores[metric]:.3f}" for metric in SHOWN))
        table.add_section()
    Console().print(table)
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(means, indent=1)
    replace_file(
        arguments.output / "metrics.json", lambda temporary: temporary.write_text(text, encoding="utf-8")
    )


if __name__ == "__main__":
    main()
