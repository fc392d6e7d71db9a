"""How far to trust a predicted band gap: MiniLM on 3,896 measured compositions, and on families held out.

Fits LoRA, an ensemble of five LoRAs and BaLoRA (noise adapted to each input, and fixed) with the same data, batches
and steps, and asks of each whether its predicted standard deviation follows its error, and whether its intervals hold
what they promise. Two splits: by composition at random, and with all oxides and halides held out.

    python examples/band_gap.py --seeds 3 --output runs/band_gap

Each method and seed is a job with a thread of its own; a job that is done, under the same settings, is not done again.
A composition is read to the model by the names of its elements. The noise of a measurement is a second output of the
head; with `--noise learned`, one number for all. The total standard deviation of the mixture of draws is what is
correlated, unless a column says otherwise: with a single noise it ranks as the spread of the draws does.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import re
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

from bayeslora_pyro import METHODS, Regression, metrics
from bayeslora_pyro.adapters import add_lora
from bayeslora_pyro.checkpoints import replace_file
from bayeslora_pyro.methods import Recipe
from bayeslora_pyro.models import RelativeNoisePrior
from bayeslora_pyro.prediction import RegressionPrediction
from bayeslora_pyro.tasks import Examples, faster_dtype, load_base_model, load_task, make_loader, split


def balora(*arguments: Any, kl_reduction: Literal["mean", "sum"], **options: Any) -> Recipe:
    """BaLoRA, with one draw of its noise for all tokens of an item.

    Against a divergence summed over all entries no likelihood moves the noise, which is then the same for all inputs.
    """
    prior = RelativeNoisePrior(kl_reduction=kl_reduction, noise_scope="sequence")
    return METHODS["balora"](*arguments, prior=prior, **options)


VARIANTS: dict[str, Callable[..., Recipe]] = {
    "lora": METHODS["lora"],
    "ensemble": partial(METHODS["ensemble"], num_chains=5),
    "balora": partial(balora, kl_reduction="mean"),
    "balora-fixed": partial(balora, kl_reduction="sum"),
}
"""What is compared by default."""

SPLITS = ("random", "oxides and halides")
SHOWN = {
    "mae": "MAE",
    "nll": "NLL",
    "spearman": "Spearman",
    "pearson": "Pearson",
    "pearson_epistemic": "means",
    "ause": "AUSE",
}
COVERAGES = (50, 80, 90, 95)
NUM_TUNING = 400
SETTINGS = (
    "num_steps",
    "num_train",
    "num_test",
    "num_draws",
    "batch_size",
    "learning_rate",
    "noise",
    "dtype",
)
"""The arguments that a job depends on."""

SHARES = tuple(step / 20 for step in range(20))

ELEMENTS: dict[str, str] = dict(
    re.findall(
        r"(\w+):(\w+)",
        """
    Ag:silver Al:aluminium As:arsenic Au:gold B:boron Ba:barium Be:beryllium Bi:bismuth Br:bromine C:carbon Ca:calcium
    Cd:cadmium Ce:cerium Cl:chlorine Co:cobalt Cr:chromium Cs:caesium Cu:copper Dy:dysprosium Er:erbium Eu:europium
    F:fluorine Fe:iron Ga:gallium Gd:gadolinium Ge:germanium H:hydrogen Hf:hafnium Hg:mercury Ho:holmium I:iodine
    In:indium Ir:iridium K:potassium La:lanthanum Li:lithium Lu:lutetium Mg:magnesium Mn:manganese Mo:molybdenum
    N:nitrogen Na:sodium Nb:niobium Nd:neodymium Ni:nickel O:oxygen Os:osmium P:phosphorus Pb:lead Pd:palladium
    Pr:praseodymium Pt:platinum Rb:rubidium Re:rhenium Rh:rhodium Ru:ruthenium S:sulfur Sb:antimony Sc:scandium
    Se:selenium Si:silicon Sm:samarium Sn:tin Sr:strontium Ta:tantalum Tb:terbium Tc:technetium Te:tellurium Th:thorium
    Ti:titanium Tl:thallium Tm:thulium U:uranium V:vanadium W:tungsten Y:yttrium Yb:ytterbium Zn:zinc Zr:zirconium
    """,
    )
)

Job = tuple[int, str, str]
"""A seed, a split and a method."""

Result = dict[str, Any]


def spell(formula: str) -> str:
    """A composition in words: `Cu3SbSe4` is `copper 3 antimony selenium 4`, which a tokenizer does not tear apart."""
    parts = re.findall(r"[A-Z][a-z]?|[0-9.]+|[()]", formula)
    return " ".join(ELEMENTS.get(part, part) for part in parts)


def load_set(name: str, seed: int, num_train: int | None, num_test: int) -> tuple[Examples, Examples]:
    """The training and the test set of a split; tuning items stay out, and all seeds have one test set."""
    inside, outside = load_task("bandgap"), load_task("bandgap/oxides-halides")
    if name == "random":
        joined = replace(inside, texts=inside.texts + outside.texts, targets=inside.targets + outside.targets)
        parts = split(joined, train=num_train, tuning=NUM_TUNING, test=num_test, seed=seed)
        return parts.train, parts.test
    train = split(inside, train=num_train, tuning=NUM_TUNING, test=0, seed=seed).train
    return train, split(outside, train=0, tuning=0, test=num_test, seed=0).test


def standardised(examples: Examples, mean: float, deviation: float) -> Examples:
    """The examples in words, with targets in units of a deviation."""
    return replace(
        examples,
        texts=tuple(map(spell, examples.texts)),
        targets=tuple((target - mean) / deviation for target in examples.targets),
    )


def predict(job: Job, arguments: argparse.Namespace) -> tuple[RegressionPrediction, float]:
    """Fits a method and predicts the test set, in eV; also the seconds of the fit."""
    seed, name, label = job
    train, test = load_set(name, seed, arguments.num_train, arguments.num_test)
    units = statistics.fmean(train.targets), statistics.stdev(train.targets)
    train, test = standardised(train, *units), standardised(test, *units)
    base_model, tokenizer = load_base_model(
        "minilm",
        task_type="regression",
        num_labels=1 if arguments.noise == "learned" else 2,
        dtype=arguments.dtype,
        seed=seed,
    )
    base_model.set_attn_implementation("eager")  # for short texts, on a CPU, faster than the fused kernel
    peft_model = add_lora(base_model, task_type="SEQ_CLS", target_modules=["query", "value"], seed=seed)
    likelihood = Regression(noise=arguments.noise, scale=0.4)
    recipe = (METHODS | VARIANTS)[label](peft_model, likelihood, len(train), seed=seed)
    make = partial(make_loader, tokenizer=tokenizer, group_by_length=True, max_length=64)
    start = perf_counter()
    result = recipe.fit(
        make(train, batch_size=arguments.batch_size, shuffle=True, seed=seed),
        num_steps=arguments.num_steps,
        learning_rate=arguments.learning_rate,
        schedule="linear",
        progress=False,
    )
    seconds = perf_counter() - start
    num_draws = recipe.num_members if recipe.num_draws <= recipe.num_members else arguments.num_draws
    prediction = result.chains.predict(make(test, batch_size=64, shuffle=False), num_draws)
    return prediction.in_units(*units), seconds


def measure(prediction: RegressionPrediction) -> Result:
    """The scores of a prediction, its curves, and how its scores move with the number of draws."""
    loc, scale, target = prediction.loc, prediction.scale, prediction.labels
    spread, error = prediction.stddev, metrics.absolute_error(loc, target)
    curves = metrics.sparsification(spread, error)
    kept = [int(share * len(error)) for share in SHARES]
    counts = sorted({min(2**power, len(loc)) for power in range(8)})
    return {
        "scores": prediction.evaluate(),
        "calibration": metrics.interval_calibration(loc, scale, target).coverage.tolist(),
        "by_spread": curves.by_spread[kept].tolist(),
        "by_error": curves.by_error[kept].tolist(),
        "by_draws": {
            str(count): RegressionPrediction(loc[:count], scale[:count], target).evaluate()
            for count in counts
        },
    }


def run(job: Job, arguments: argparse.Namespace) -> Result:
    """Does one job, or reads what it gave before."""
    torch.set_num_threads(1)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    settings = {name: str(value) for name, value in vars(arguments).items() if name in SETTINGS}
    place = arguments.output / "jobs" / ("-".join(map(str, job)).replace(" ", "-") + ".json")
    if place.exists():
        known = json.loads(place.read_text(encoding="utf-8"))
        if known["settings"] == settings:
            return known
    prediction, seconds = predict(job, arguments)
    result = {"settings": settings, "seconds": seconds} | measure(prediction)
    write_json(place, result)
    scores = ", ".join(f"{name} {result['scores'][name]:.3f}" for name in ("mae", "nll", "spearman"))
    print(f"seed {job[0]}, {job[1]}, {job[2]}: fitted in {seconds:.0f} s; {scores}", flush=True)
    return result


def average(values: Sequence[Any]) -> Any:
    """The mean over seeds of numbers, of lists and dictionaries of them, place by place."""
    first = values[0]
    if isinstance(first, dict):
        return {name: average([value[name] for value in values]) for name in first}
    if isinstance(first, list):
        return [average(column) for column in zip(*values, strict=True)]
    return statistics.fmean(values)


def summarise(jobs: Sequence[Job], results: Sequence[Result]) -> dict[str, dict[str, Result]]:
    """What each method gave on each split: the mean over seeds, and the standard deviation of the scores."""
    summary: dict[str, dict[str, Result]] = {}
    for name, label in dict.fromkeys(job[1:] for job in jobs):
        runs = [
            {part: value for part, value in result.items() if part != "settings"}
            for job, result in zip(jobs, results, strict=True)
            if job[1:] == (name, label)
        ]
        deviations = {
            metric: statistics.stdev(result["scores"][metric] for result in runs) if len(runs) > 1 else 0.0
            for metric in runs[0]["scores"]
        }
        summary.setdefault(name, {})[label] = average(runs) | {"deviations": deviations}
    return summary


def show(summary: dict[str, dict[str, Result]], num_seeds: int, console: Console) -> None:
    """Prints a table for each split."""
    for name, methods in summary.items():
        coverage = "in " + "/".join(map(str, COVERAGES))
        title = f"{name}, mean of {num_seeds} seed(s)"
        table = Table(
            "method",
            *SHOWN.values(),
            coverage,
            "fit, s",
            title=title,
            box=box.SIMPLE,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for label, result in methods.items():
            scores = result["scores"]
            inside = "/".join(f"{100 * scores[f'coverage_{level}']:.0f}" for level in COVERAGES)
            shown = (f"{scores[metric]:.3f}" for metric in SHOWN)
            table.add_row(label, *shown, inside, f"{result['seconds']:.0f}")
        console.print(table, end="\n\n")


def draw(summary: dict[str, dict[str, Result]]) -> Figure:
    """Draws calibration curves, sparsification curves and correlations by the number of draws, a row for each split."""
    figure = Figure(figsize=(12, 3.8 * len(summary)), layout="constrained")
    grid = figure.subplots(len(summary), 3, squeeze=False)
    for (name, methods), axes in zip(summary.items(), grid, strict=True):
        levels = [step / 20 for step in range(1, 20)]
        axes[0].plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for place, (label, result) in enumerate(methods.items()):
            colour = f"C{place}"
            axes[0].plot(levels, result["calibration"], color=colour, label=label)
            axes[1].plot(SHARES, result["by_spread"], color=colour, label=label)
            axes[1].plot(SHARES, result["by_error"], color=colour, linestyle=":", linewidth=1)
            correlations = {int(count): scores["spearman"] for count, scores in result["by_draws"].items()}
            if len(correlations) > 1:
                axes[2].plot(*zip(*correlations.items(), strict=True), "o-", color=colour, label=label)
        axes[0].set(xlabel="probability of the interval", ylabel="share of gaps inside", title=name)
        axes[1].set(
            xlabel="share of gaps taken away, least certain first",
            ylabel="MAE of the rest, over that of all",
            title=f"{name} (dotted: by error)",
            ylim=(0, None),
        )
        axes[2].set(xlabel="draws, or members", ylabel="Spearman of deviation and error", title=name)
        axes[2].set_xscale("log", base=2)
        axes[2].xaxis.set_major_formatter("{x:.0f}")
        axes[0].legend()
        axes[2].grid(alpha=0.3)
    return figure


def write_json(path: Path, value: Any) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=1)
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = list(METHODS | VARIANTS)
    parser.add_argument("--methods", nargs="+", choices=known, default=list(VARIANTS))
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=list(SPLITS))
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds to average over")
    parser.add_argument("--num-steps", type=int, default=300, help="optimizer steps of every fit")
    parser.add_argument("--num-train", type=int, help="training items; all by default")
    parser.add_argument("--num-test", type=int, default=300, help="test items of each split")
    parser.add_argument("--num-draws", type=int, default=128, help="draws of a posterior, at most")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--noise", choices=("learned", "predicted"), default="predicted")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the base model; the faster one by default"
    )
    parser.add_argument("--num-workers", type=int, default=os.cpu_count() or 1, help="jobs at a time")
    parser.add_argument("--output", type=Path, default=Path("runs/band_gap"), help="where the results go")
    arguments = parser.parse_args()
    arguments.dtype = getattr(torch, arguments.dtype) if arguments.dtype else faster_dtype()
    return arguments


def main() -> None:
    """Runs the example."""
    arguments, console = parse_arguments(), Console()
    load_task("bandgap")  # downloads happen here, not in several processes at once
    load_base_model("minilm", task_type="regression")
    jobs = [
        (seed, name, label)
        for seed in range(arguments.seeds)
        for name in arguments.splits
        for label in arguments.methods
    ]
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(arguments.num_workers, len(jobs)), mp_context=spawned) as pool:
        results = list(pool.map(partial(run, arguments=arguments), jobs))
    summary = summarise(jobs, results)
    write_json(arguments.output / "metrics.json", summary)
    figure = draw(summary)
    FigureCanvasAgg(figure).print_png(arguments.output / "band_gaps.png")
    show(summary, arguments.seeds, console)
    console.print(f"Written: {arguments.output / 'metrics.json'} and {arguments.output / 'band_gaps.png'}")


if __name__ == "__main__":
    main()
