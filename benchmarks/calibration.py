"""What calibrates Bayesian-LoRA on little data: variants of prior and fit, on tuning data, never on the test set.

    python benchmarks/calibration.py --variants default kl-0.02 --seeds 10 11 --json

MiniLM on 400 movie sentences, evaluated on 1,000 tuning sentences. The seeds of the README's figures (0, 1, 2)
are not used here. `gap` is mean confidence minus accuracy: positive means overconfident.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from bayeslora_pyro import METHODS, BayesianLora, FitConfig, FlowGuide, InducingPrior, MeanFieldGuide, fit
from bayeslora_pyro.adapters import add_lora
from bayeslora_pyro.metrics import mean_log_probs
from bayeslora_pyro.tasks import load_base_model, load_task, make_loader, split

Variant = dict[str, dict[str, Any]]

VARIANTS: dict[str, Variant] = {
    "default": {},
    "flow": {"guide": {"transform": "affine_autoregressive"}},
    "fixed-scale": {"prior": {"learn_scale": False}},
    "one-draw": {"fit": {"draws_per_batch": 1}},
    "16-draws": {"fit": {"draws_per_batch": 16}},
    "kl-0.02": {"fit": {"kl_weight": 0.02}},
    "kl-0.05": {"fit": {"kl_weight": 0.05}},
    "kl-0.2": {"fit": {"kl_weight": 0.2}},
    "elbo": {"fit": {"kl_weight": 1.0}},
    "dropout": {"fit": {"dropout": True}},
    "cosine": {"fit": {"schedule": "cosine"}},
    "from-lora": {"from_lora": {}},
}
"""Each changes one thing against the default mean field."""


def fit_variant(variant: Variant, seed: int, num_steps: int) -> dict[str, float]:
    """Fits a variant with one seed, and scores it on the tuning set."""
    sets = split(load_task("sentiment"), train=400, tuning=1000, test=1000, seed=seed)
    base_model, tokenizer = load_base_model("minilm", task_type="classification", num_labels=2, seed=seed)
    peft_model = add_lora(base_model, task_type="SEQ_CLS", target_modules=["query", "value"], seed=seed)
    loading = {"group_by_length": True, "max_length": 64}
    train = make_loader(sets.train, tokenizer, batch_size=16, shuffle=True, seed=seed, **loading)
    tuning = make_loader(sets.tuning, tokenizer, batch_size=64, shuffle=False, **loading)
    if "method" in variant:
        recipe = METHODS[variant["method"]["name"]](peft_model, "classification", 400, seed=seed)
        result, num_draws = recipe.fit(train, num_steps=num_steps, progress=False), recipe.num_draws
    else:
        model = BayesianLora(
            peft_model, InducingPrior(**variant.get("prior", {})), "classification", 400, seed=seed
        )
        family = FlowGuide if "transform" in variant.get("guide", {}) else MeanFieldGuide
        guide = family(model, seed=seed, **variant.get("guide", {}))
        if "from_lora" in variant:
            guide.from_lora()
        config = FitConfig(seed=seed, num_steps=num_steps).replace(**variant.get("fit", {}))
        result, num_draws = fit(model, guide, train, config, progress=False), 8
    prediction = result.posterior.predict(tuning, num_draws)
    scores = prediction.evaluate()
    confidence = float(mean_log_probs(prediction.log_probs).exp().amax(-1).mean())
    last = result.history[-1]
    kept = {name: scores[name] for name in ("accuracy", "nll", "ece")}
    return (
        kept | {"gap": confidence - scores["accuracy"]} | {k: last[k] for k in ("kl_V", "kl_W") if k in last}
    )


def main() -> None:
    """Runs the variants."""
    table_of = VARIANTS | {"lora": {"method": {"name": "lora"}}}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", choices=list(table_of), default=list(table_of))
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12])
    parser.add_argument("--num-steps", type=int, default=600)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    arguments = parser.parse_args()
    results: dict[str, dict[str, float]] = {}
    for name in arguments.variants:
        rows = [fit_variant(table_of[name], seed, arguments.num_steps) for seed in arguments.seeds]
        results[name] = {metric: sum(row[metric] for row in rows) / len(rows) for metric in rows[0]}
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    table = Table(
        "variant", "accuracy", "nll", "ece", "gap", "KL V", "KL W", title=f"seeds {arguments.seeds}"
    )
    for name, row in results.items():
        cells = [row.get(metric) for metric in ("accuracy", "nll", "ece", "gap", "kl_V", "kl_W")]
        table.add_row(name, *("" if cell is None else f"{cell:.3f}" for cell in cells))
    Console().print(table)


if __name__ == "__main__":
    main()
