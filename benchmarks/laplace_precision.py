"""Which precision Laplace-LoRA needs on questions of six kinds, on tuning data, never on the test set.

    python benchmarks/laplace_precision.py --seeds 10 11 --json

MiniLM on 400 TREC questions, evaluated on 600 tuning questions; 400 others choose the precision where labels do. The
seeds of the tables (0 to 4) are not used here. LoRA and MAP are fitted once for each seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

from rich.console import Console
from rich.table import Table

from bayeslora_pyro import METHODS, Posterior, laplace_posterior
from bayeslora_pyro.adapters import add_lora
from bayeslora_pyro.laplace import LaplaceConfig
from bayeslora_pyro.tasks import faster_dtype, load_base_model, load_task, make_loader, split

SETTINGS: dict[str, dict[str, Any]] = {
    "evidence": {},
    "evidence, per role": {"per": "role"},
    "evidence, per layer": {"per": "layer"},
    "evidence, per factor": {"per": "factor"},
    "evidence, reduce": {"sharing": "reduce"},
    "evidence, diagonal": {"structure": "diagonal"},
    "10": {"precision": 10.0},
    "30": {"precision": 30.0},
    "100": {"precision": 100.0},
    "1000": {"precision": 1000.0},
    "tuning": {"precision": "tuning"},
}
DRAWS = (10, 1000)


def figures_of(seed: int, method: str) -> dict[str, dict[str, float]]:
    """Fits a method, and scores it and each Laplace approximation around it."""
    own = split(load_task("questions"), train=400, tuning=1000, test=1000, seed=seed)
    base_model, tokenizer = load_base_model(
        "minilm", task_type="classification", num_labels=6, dtype=faster_dtype(), attention="eager", seed=seed
    )
    peft_model = add_lora(base_model, task_type="SEQ_CLS", target_modules=["query", "value"], seed=seed)
    loading: dict[str, Any] = {"group_by_length": True, "max_length": 64}
    train = make_loader(own.train, tokenizer, batch_size=16, shuffle=True, seed=seed, **loading)
    choosing, scoring = (
        make_loader(own.tuning.select(items), tokenizer, batch_size=64, shuffle=False, **loading)
        for items in (range(400), range(400, 1000))
    )
    fitted = METHODS[method](peft_model, "classification", 400, seed=seed).fit(train, num_steps=600).posterior
    found = {f"{method} itself": _scores(fitted, scoring, (1,))}
    for name, settings in SETTINGS.items():
        config = LaplaceConfig(**settings)
        labelled = choosing if config.precision == "tuning" else None
        posterior = laplace_posterior(fitted, train, config, tuning=labelled)
        facts = posterior.metadata["laplace"]
        found[f"{method}, {name}"] = _scores(posterior, scoring, DRAWS) | {
            "precision": statistics.geometric_mean(facts["precision"]),
            "effective dimension": facts["effective_dimension"],
            "log-likelihood": facts["log_likelihood"],
        }
    return found


def _scores(posterior: Posterior, loader: Any, draws: tuple[int, ...]) -> dict[str, float]:
    scores = {}
    for number in draws:
        own = posterior.predict(loader, number, seed=0).evaluate()
        scores |= {f"{metric}, {number}": own[metric] for metric in ("accuracy", "nll", "ece")}
    return scores


def main() -> None:
    """Runs all settings around each fit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=("lora", "map"), default=["lora", "map"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for method in arguments.methods:
        runs = [figures_of(seed, method) for seed in arguments.seeds]
        for row in runs[0]:
            results[row] = {key: statistics.fmean(run[row][key] for run in runs) for key in runs[0][row]}
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    ways = [f"{number} draws" for number in DRAWS]
    table = Table("precision", "mean", *ways, title=f"accuracy / NLL / ECE, seeds {arguments.seeds}")
    for name, own in results.items():
        cells = [
            " / ".join(f"{own[f'{metric}, {number}']:.3f}" for metric in ("accuracy", "nll", "ece"))
            for number in (DRAWS if f"nll, {DRAWS[0]}" in own else (1,))
        ]
        table.add_row(name, f"{own['precision']:.1f}" if "precision" in own else "", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
