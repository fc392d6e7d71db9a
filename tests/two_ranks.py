"""What two processes compute together, held against one: run as a script, once for each rank."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from bayeslora_pyro.inference import fit
from bayeslora_pyro.models import BayesianLora, InducingPrior
from bayeslora_pyro.ranks import rank, world_size
from bayeslora_pyro.training.objective import Objective
from bayeslora_pyro.types import Batch

from .test_resume import parameters
from .tiny import tiny_batch, tiny_bert

OPTIONS: dict[str, Any] = {"num_steps": 3, "progress": False, "kl_warmup": 0.0, "draws_per_batch": 1}
SPLITS = {"halves": 4, "unequal": 3}
"""How many of eight items the first process has."""


def objective(**options: Any) -> Objective:
    from bayeslora_pyro import FlowGuide

    from .test_posterior import perturbed

    model = BayesianLora(tiny_bert(), InducingPrior(rows=3, cols=3), num_data=40)
    made = Objective(model, perturbed(FlowGuide(model)), **options)
    made.settings = made.settings.replace(draws_per_batch=1, kl_weight=1.0, kl_warmup=0.0)
    return made


def part(batch: Batch, first: int, of_rank: int) -> Batch:
    return {name: value[:first] if of_rank == 0 else value[first:] for name, value in batch.items()}


def gradients(module: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
    inner = module.module if isinstance(module, DistributedDataParallel) else module
    inner.zero_grad()
    module(batch, 2).backward()
    return {n: p.grad.clone() for n, p in inner.named_parameters() if p.grad is not None}


class DivergencePerRank(Objective):
    """The planted fault: each process weights the divergence as if it were alone, and the sum is taken."""

    def forward(self, batch: Batch, step: int = 0, micro: int = 0) -> Tensor:
        both = super().forward(batch, step, micro)
        self.settings = self.settings.replace(kl_weight=2.0)
        doubled = super().forward(batch, step, micro)
        self.settings = self.settings.replace(kl_weight=1.0)
        return doubled + 0 * both


class LocalSizes(Objective):
    """The planted fault: each process scales its likelihood by its own batch, and all count alike."""

    def _weight(self, batch: Batch) -> float:
        return 1.0


def distance(ours: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest entry; infinite where names differ."""
    if ours.keys() != wanted.keys():
        return float("inf")
    scale = max(float(value.abs().max()) for value in wanted.values())
    return max(float((value - wanted[name]).abs().max()) for name, value in ours.items()) / scale


def alone() -> dict[str, Any]:
    """What one process has, before it knows of the other."""
    batch = tiny_batch(items=8)
    own = {
        name: [gradients(objective(seed_of_rank=k), part(batch, first, k)) for k in range(2)]
        for name, first in SPLITS.items()
    }
    model, guide = fresh()
    whole = fit(model, guide, batches(), accumulate=2, **OPTIONS)
    return {
        "whole": gradients(objective(), batch),
        "own noise": {
            name: {n: (first * g + (8 - first) * own[name][1][n]) / 8 for n, g in own[name][0].items()}
            for name, first in SPLITS.items()
        },
        "fit": (parameters(model, guide), whole.history),
    }


def fresh() -> Any:
    from .test_resume import fresh as make

    return make("flow")


def batches() -> list[Batch]:
    return [tiny_batch(items=4, seed=k) for k in range(4)]


def together(known: dict[str, Any], place: Path) -> dict[str, float]:
    """The distances of what both processes have from what one has."""
    batch, found = tiny_batch(items=8), {}
    for name, first in SPLITS.items():
        mine = part(batch, first, rank())
        for title, made, wanted in (
            ("fixed noise", objective(seed_of_rank=0), known["whole"]),
            ("own noise", objective(), known["own noise"][name]),
            ("own noise as if fixed", objective(), known["whole"]),
        ):
            found[f"{name}, {title}"] = distance(gradients(DistributedDataParallel(made), mine), wanted)
        for fault in (DivergencePerRank, LocalSizes):
            made = objective(seed_of_rank=0)
            made.__class__ = fault
            found[f"{name}, {fault.__name__}"] = distance(
                gradients(DistributedDataParallel(made), mine), known["whole"]
            )
    model, guide = fresh()
    result = fit(model, guide, batches(), checkpoint=place / "fit.checkpoint", **OPTIONS)
    found["fit"] = distance(parameters(model, guide), known["fit"][0])
    pairs = zip(result.history, known["fit"][1], strict=True)
    found["history"] = max(abs(a[name] - b[name]) for a, b in pairs for name in a)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    number, folder = int(sys.argv[1]), Path(sys.argv[2])
    reference = alone()
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=number, world_size=2
    )
    distances = together(reference, folder)
    (folder / f"rank-{number}.json").write_text(json.dumps([world_size(), distances]))
    distributed.destroy_process_group()
