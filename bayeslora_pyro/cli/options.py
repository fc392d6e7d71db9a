"""The options that commands share or have many of: one table serves flags and configuration files."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from bayeslora_pyro.cli.values import (
    ValueType,
    number,
    number_or,
    once,
    one_of,
    sizes,
    switch,
    text,
    texts,
    whole,
    wholes,
)
from bayeslora_pyro.config import FitConfig

__all__ = [
    "CELLS",
    "DATA",
    "DEVICE",
    "DRAW_SEED",
    "FITTING",
    "FIT_FIELDS",
    "FIT_RUN",
    "METHOD",
    "MODEL",
    "PROTOCOL",
    "SHIFTS",
    "Option",
]


@dataclass(frozen=True)
class Option:
    """One option of a command.

    Args:
        name: Its key in a configuration file; a dot is a level of its own there, as in `prior.rows`.
        type: The type of its value.
        about: What it is for.
        default: Its value where it is not given.
        group: The heading in the help.
    """

    name: str
    type: ValueType
    about: str
    default: Any = None
    group: str = "options"

    @property
    def flag(self) -> str:
        """The flag, such as `--num-steps`."""
        return "--" + self.name.replace("_", "-")


def _fit_fields() -> tuple[Option, ...]:
    """One option for each field of `FitConfig`, with the words of its docstring."""
    about = dict(re.findall(r"^ {4}(\w+): (.+)$", inspect.getdoc(FitConfig) or "", re.MULTILINE))
    types = get_type_hints(FitConfig)
    return tuple(
        Option(field.name, _type_of(types[field.name]), _lower(about.get(field.name, "")), group="fitting")
        for field in fields(FitConfig)
        if field.name != "seed"
    )


def _type_of(hint: Any) -> ValueType:
    if get_origin(hint) is Literal:
        return one_of(*get_args(hint))
    return {bool: switch, int: whole(), float: number()}.get(hint) or number(optional=True)


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _group(name: str, *options: tuple[Any, ...]) -> tuple[Option, ...]:
    return tuple(
        Option(key, kind, about, rest[0] if rest else None, name) for key, kind, about, *rest in options
    )


FIT_FIELDS = tuple(field.name for field in fields(FitConfig))
"""The options that go into `FitConfig`, `seed` among them."""

FITTING = _fit_fields()

DATA = _group(
    "data",
    ("task", text(), "a packaged data set, such as sentiment, questions, spam, social_iqa or arc_easy"),
    ("data", text("FILE"), "your own file instead: .jsonl or .csv, perhaps with .gz"),
    ("text_column", text("COLUMN"), "its column of texts (default: text)"),
    ("label_column", text("COLUMN"), "its column of classes (default: label)"),
    ("target_column", text("COLUMN"), "its column of numbers, for a regression"),
    ("data_dir", text("DIR"), "a folder with files of the commonsense tasks; the hub is asked otherwise"),
    ("train", whole(1), "how many items to train on (default: all that are left)"),
    ("tuning", whole(0), "how many to keep for tuning (default: a tenth, at most 400)"),
    ("test", whole(0), "how many to keep for testing (default: a fifth, at most 1000)"),
)

MODEL = _group(
    "base model and LoRA",
    ("model", text(), "minilm, smollm2, a name on the hub, or a folder"),
    ("dtype", one_of("float32", "bfloat16", "float16"), "the precision of the base model"),
    ("quantization", one_of("8bit", "4bit"), "keep its linear layers in fewer bits, with bitsandbytes"),
    ("device", text("DEVICE"), "where to run (default: cuda if there is one, else cpu)"),
    ("shard", switch, "leave each of several processes a part of the base model (FSDP)", False),
    ("r", whole(1), "the rank of LoRA", 8),
    ("lora_alpha", whole(1), "LoRA's scaling is lora_alpha / r", 16),
    ("lora_dropout", number(0), "the dropout of LoRA's inputs, where --dropout is on", 0.0),
    ("target_modules", texts("MODULE"), "the modules that LoRA adapts (default: usual for the base model)"),
    (
        "adapter",
        text("DIR"),
        "a trained LoRA, as a PEFT folder, for tfb, laplace-lora and laplace-lora-last-layer: nothing is fitted",
    ),
    ("max_length", whole(2), "the longest text in tokens (default: 128, or what the model takes)"),
    ("batch_size", whole(1), "how many items a batch holds", 16),
)

METHOD = _group(
    "method",
    (
        "method",
        text(),
        "bayesian-lora, bayesian-lora-mf (mean field), bayesian-lora-mn (matrix normal), bayesian-lora-spline, map, "
        "blob, balora, rank-space, lora, ensemble (of LoRA fits), checkpoint-ensemble (of points of one fit), "
        "mc-dropout, tfb (noise for a trained LoRA), laplace-lora or laplace-lora-last-layer (the curvature at a "
        "trained LoRA)",
        "bayesian-lora",
    ),
    ("num_chains", whole(1), "how many independent fits predict together (default: the method's own)"),
    ("transform", text(), "the flow, such as affine_autoregressive, planar or spline_coupling"),
    ("depth", whole(1), "how many flows in a row"),
    ("over", one_of("rows", "matrix"), "what the flow maps: each inducing row, or the whole matrix"),
    ("conditioned", switch, "share one flow, conditioned on an embedding of each factor"),
    (
        "choice_scoring",
        one_of("sum", "mean", "letters"),
        "choices by the log-likelihood of their tokens, sum or mean, or by letters in the prompt (default: mean)",
    ),
    ("prior.rows", whole(1), "the number of inducing rows"),
    ("prior.cols", whole(1), "the number of inducing columns"),
    ("prior.scale", number(), "the prior standard deviation of a weight, before width scaling"),
    ("prior.width_scaled", switch, "divide it by the root of the number of inputs"),
    ("prior.learn_scale", switch, "learn it, one for each factor"),
    ("prior.nugget", number(), "the initial nuggets of the inducing locations"),
    ("prior.scale_prior", number(), "make it random: the standard deviation of its logarithm"),
    ("prior.whitened", switch, "whether the inducing matrices are whitened"),
    ("prior.rate", number(0), "the rate of the dropout that the noise of BaLoRA is held to"),
    ("prior.kl_reduction", one_of("mean", "sum"), "its divergence over the entries of a factor"),
    ("prior.noise_scope", one_of("token", "sequence", "weight"), "what sees one draw of it"),
    ("prior.family", one_of("dropout", "aggregate"), "what it is held to: that rate, or the mean of a batch"),
    ("guide.scale", number(), "the initial standard deviation of the inducing matrices"),
    ("guide.rate", number(0), "the share of the inputs of A that MC dropout drops"),
    (
        "guide.features",
        one_of("embeddings", "backbone", "cls"),
        "what BaLoRA reads the size of the noise off",
    ),
    ("guide.link", one_of("softplus", "exp"), "what makes that size positive"),
    ("guide.hidden", whole(1), "the width of the network that reads it"),
    ("guide.noise_scale", number(), "the initial share of the conditional noise, between 0 and 1"),
    (
        "laplace.structure",
        one_of("kronecker", "diagonal"),
        "what is kept of the curvature (default: kronecker)",
    ),
    (
        "laplace.precision",
        number_or("evidence", "tuning"),
        "the precision of the prior, or what chooses it: evidence, or tuning items (default: evidence)",
    ),
    ("laplace.per", one_of("all", "role", "layer", "factor"), "which factors share one (default: all)"),
    (
        "laplace.modules",
        text("PATTERN"),
        "the adapted modules that are random (default: all, or the last layer)",
    ),
    ("laplace.sharing", one_of("expand", "reduce"), "how tokens share in the curvature (default: expand)"),
    ("laplace.rank", whole(1), "the eigenvectors of a side that is not kept whole (default: 10)"),
    ("laplace.max_dense", whole(0), "the largest side that is kept whole (default: 1024)"),
    ("tfb.tolerance", number(), "the loss of performance that is borne"),
    ("tfb.metric", one_of("nll", "accuracy"), "what performance is"),
)

FIT_RUN = _group(
    "run",
    ("seed", whole(0), "the seed of everything random", 0),
    ("output", text("DIR"), "the folder of the run (default: runs/<data>-<method>)"),
    ("resume", once, "go on with the interrupted run in the folder", False),
    ("overwrite", once, "replace the run that is in the folder", False),
)

SHIFTS = _group(
    "data",
    ("shift", texts(), "tasks or files to look at beside the test set"),
    ("shift_items", whole(1), "how many items of each at most (default: as many as were tested)"),
)

DRAW_SEED = Option("seed", whole(0), "the seed of the draws", 0)
DEVICE = Option("device", text("DEVICE"), "where to run (default: cuda if there is one, else cpu)")

CELLS = _group(
    "cells: what is given takes the place of the tier's own",
    ("tasks", texts(), "the tasks"),
    ("models", texts(), "the base models: names or folders, quantised with @8bit or @4bit behind"),
    ("methods", texts(), "the methods, those of fit; base is the base model as it is"),
    ("sizes", sizes, "the numbers of training items; all for all that are left"),
    ("seeds", wholes(0), "the seeds"),
)

PROTOCOL = _group(
    "protocol: what is given takes the place of the tier's own",
    ("num_steps", whole(1), "the number of optimizer steps"),
    ("num_tuning", whole(1), "the number of tuning items, the only ones that a temperature sees"),
    ("num_test", whole(1), "the number of test items at most"),
    ("num_shift", whole(1), "the number of items of each shift at most (default: 3/5 of the test items)"),
    (
        "dtype",
        one_of("float32", "bfloat16", "float16"),
        "the precision of the base model (default: the faster)",
    ),
    ("blob_compat", switch, "repeat quirks of the published evaluation, which move numbers"),
)
