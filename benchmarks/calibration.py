"""What calibrates Bayesian-LoRA on little data: variants of prior and fit, on tuning data, never on the test set.

    python benchmarks/calibration.py --variants lora default kl-0.02 --seeds 10 11 --json

MiniLM on 400 movie sentences, evaluated on 600 tuning sentences of movies and 300 each of Amazon reviews and of tweets.
LoRA's temperature is fitted on 400 other tuning sentences. The seeds of the README's figures (0, 1, 2) are not used
here. `gap` is mean confidence minus accuracy: positive means overconfident. Each variant predicts with its draws as
they are, and with the same draws centred on the mean adapter.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from typing import Any

import torch
from locations import locate_columns
from rich.console import Console
from rich.table import Table

from bayeslora_pyro import METHODS, BayesianLora, FitConfig, FlowGuide, InducingPrior, MeanFieldGuide, fit
from bayeslora_pyro.adapters import add_lora
from bayeslora_pyro.guides import Guide
from bayeslora_pyro.methods.bayesian_lora import Centre
from bayeslora_pyro.metrics import evaluate_log_probs, mean_log_probs, temperature_scale
from bayeslora_pyro.tasks import Examples, faster_dtype, load_base_model, load_task, make_loader, split

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
    "noise-0.02": {"guide": {"noise_scale": 0.02}},
    "noise-0.1": {"guide": {"noise_scale": 0.1}},
    "fast-cosine": {"fit": {"learning_rate": 1e-2, "schedule": "cosine"}},
    "kl-0.1": {"fit": {"kl_weight": 0.1}},
    "noise-0.1-kl-0.02": {"guide": {"noise_scale": 0.1}, "fit": {"kl_weight": 0.02}},
    "noise-0.1-fast-cosine": {
        "guide": {"noise_scale": 0.1},
        "fit": {"learning_rate": 1e-2, "schedule": "cosine"},
    },
    "points-b": {"roles": {"B": "point"}},
    "conditional": {"prior": {"scale": 0.05}, "guide": {"noise_scale": 0.95}, "start": {"factor": 6.0}},
    "conditional-kl-0.2": {
        "prior": {"scale": 0.05},
        "guide": {"noise_scale": 0.95},
        "start": {"factor": 6.0},
        "fit": {"kl_weight": 0.2},
    },
    "conditional-elbo": {
        "prior": {"scale": 0.05},
        "guide": {"noise_scale": 0.95},
        "start": {"factor": 6.0},
        "fit": {"kl_weight": 1.0},
    },
    "located": {"located": {}},
    "located-noise-0.02": {"located": {}, "guide": {"noise_scale": 0.02}},
    "located-noise-0.1": {"located": {}, "guide": {"noise_scale": 0.1}},
}
"""Each changes one thing against the default mean field."""


SHIFTS = ("amazon", "tweets")


def load_sets(seed: int) -> dict[str, Examples]:
    """The training set, what the temperature is fitted on, and what is evaluated; none of it holds a test item."""
    own = split(load_task("sentiment"), train=400, tuning=1000, test=1000, seed=seed)
    far = {name: split(load_task(name), train=0, tuning=300, test=600, seed=0).tuning for name in SHIFTS}
    temperature, movies = own.tuning.select(range(400)), own.tuning.select(range(400, 1000))
    return {"train": own.train, "temperature": temperature, "movies": movies} | far


def fit_variant(variant: Variant, seed: int, num_steps: int) -> dict[str, dict[str, float]]:
    """Fits a variant with one seed, and scores each way it predicts on each set."""
    sets, options = load_sets(seed), {"dtype": faster_dtype(), "attention": "eager", "seed": seed}
    base_model, tokenizer = load_base_model("minilm", task_type="classification", num_labels=2, **options)
    peft_model = add_lora(base_model, task_type="SEQ_CLS", target_modules=["query", "value"], seed=seed)
    loading = {"group_by_length": True, "max_length": 64}
    train = make_loader(sets.pop("train"), tokenizer, batch_size=16, shuffle=True, seed=seed, **loading)
    if "method" in variant:
        recipe = METHODS[variant["method"]["name"]](peft_model, "classification", 400, seed=seed)
        result, num_draws = recipe.fit(train, num_steps=num_steps, progress=False), recipe.num_draws
        posteriors = {"": result.posterior}
    else:
        inducing = InducingPrior(**variant.get("prior", {}))
        prior = {"A": inducing} | variant["roles"] if "roles" in variant else inducing
        model = BayesianLora(peft_model, prior, "classification", 400, seed=seed)
        guide = make_guide(variant, model, train, seed)
        config = FitConfig(seed=seed, num_steps=num_steps).replace(**variant.get("fit", {}))
        result, num_draws = fit(model, guide, train, config, progress=False), 8
        posteriors = {"": result.posterior, ", centred": Centre(seed)(result.posterior, train)}
    loaders = {
        name: make_loader(own, tokenizer, batch_size=64, shuffle=False, **loading)
        for name, own in sets.items()
    }
    divergences = {k: result.history[-1][k] for k in ("kl_V", "kl_W") if k in result.history[-1]}
    scores = {}
    for way, posterior in posteriors.items():
        predictions = {name: posterior.predict(loader, num_draws) for name, loader in loaders.items()}
        scores[way] = score(predictions) | divergences
    return scores


def make_guide(variant: Variant, model: BayesianLora, train: Iterable[Any], seed: int) -> Guide:
    """The guide of a variant, where it starts."""
    read = locate_columns(model, train) if "located" in variant else []
    family = FlowGuide if "transform" in variant.get("guide", {}) else MeanFieldGuide
    guide = family(model, seed=seed, **variant.get("guide", {}))
    with torch.no_grad():
        for name in read:
            guide.get_parameter(f"{name}.loc")[:, :, 0] = 0  # what all tokens share starts unread
        for stack in guide.stacks if "start" in variant else ():
            guide.get_parameter(f"{stack.name}.loc").mul_(variant["start"]["factor"])
    if "from_lora" in variant:
        guide.from_lora()
    return guide


def score(predictions: dict[str, Any]) -> dict[str, float]:
    """The figures of each set, as they are and with a temperature."""
    means = {name: mean_log_probs(own.log_probs) for name, own in predictions.items()}
    temperature = temperature_scale(means.pop("temperature"), predictions["temperature"].labels)
    scores = {}
    for name, mean in means.items():
        own = predictions[name].evaluate()
        scaled = evaluate_log_probs((mean / temperature).log_softmax(-1), predictions[name].labels)
        scores |= {f"{name} {metric}": own[metric] for metric in ("accuracy", "nll", "ece")}
        scores[f"{name} gap"] = float(mean.exp().amax(-1).mean()) - own["accuracy"]
        scores |= {f"{name} {metric} with a temperature": scaled[metric] for metric in ("nll", "ece")}
    return scores


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
        for way in rows[0]:
            means = {metric: sum(row[way][metric] for row in rows) / len(rows) for metric in rows[0][way]}
            results[name + way] = means
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    sets = ("movies", *SHIFTS)
    table = Table("variant", *sets, "KL V", "KL W", title=f"accuracy / NLL / ECE, seeds {arguments.seeds}")
    for name, row in results.items():
        cells = [
            " / ".join(f"{row[f'{own} {metric}']:.3f}" for metric in ("accuracy", "nll", "ece"))
            for own in sets
        ]
        table.add_row(name, *cells, *(f"{row[k]:.1f}" if k in row else "" for k in ("kl_V", "kl_W")))
    Console().print(table)


if __name__ == "__main__":
    main()
