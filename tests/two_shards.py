"""What two processes compute over a base model in two parts, held against one whole: run as a script for each rank."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from accelerate import Accelerator
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from bayeslora_pyro.adapters import sharding
from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.guides import FlowGuide
from bayeslora_pyro.inference import fit
from bayeslora_pyro.methods import METHODS
from bayeslora_pyro.models import BayesianLora, InducingPrior
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.ranks import rank, world_size
from bayeslora_pyro.training import Objective, shard_base

from .test_adapters import checkpoint_gradients
from .test_posterior import perturbed
from .test_resume import parameters
from .tiny import tiny_batch, tiny_bert, tiny_llama
from .two_ranks import SPLITS, DivergencePerRank, batches, distance, gradients, part

BASES: dict[str, Callable[[], PeftModel]] = {
    "bert": tiny_bert,
    "llama": lambda: tiny_llama(num_labels=3, num_layers=3, layers_to_transform=[1, 2]),
}
OPTIONS: dict[str, Any] = {"num_steps": 3, "progress": False, "kl_warmup": 0.0, "draws_per_batch": 1}


def base(name: str, sharded: bool = True, checkpointed: bool = False) -> PeftModel:
    peft_model = BASES[name]()
    if checkpointed:
        checkpoint_gradients(peft_model)
    if sharded:
        shard_base(peft_model)
    return peft_model


def posterior(peft_model: PeftModel) -> Posterior:
    model = BayesianLora(peft_model, InducingPrior(rows=3, cols=3), num_data=40)
    return Posterior(model, perturbed(FlowGuide(model)))


def objective(peft_model: PeftModel, kind: type[Objective] = Objective) -> Objective:
    """Its noise is that of the first process, in both."""
    start = posterior(peft_model)
    settings = FitConfig(draws_per_batch=1, kl_weight=1.0, kl_warmup=0.0)
    return kind(start.model, start.guide, settings, seed_of_rank=0)


def half_gradients(made: Objective, first: int) -> dict[str, Tensor]:
    """The average of the gradients of two processes that each have a part of the batch."""
    with made.modes():
        return gradients(DistributedDataParallel(made), part(tiny_batch(items=8), first, rank()))


def accelerated_gradients(made: Objective, first: int) -> dict[str, Tensor]:
    """The same under Accelerate."""
    known = {"RANK": rank(), "LOCAL_RANK": rank(), "WORLD_SIZE": world_size(), "MASTER_PORT": 0}
    os.environ |= {name: str(value) for name, value in known.items()} | {"MASTER_ADDR": "localhost"}
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(made.optimizer_groups())
    prepared, optimizer = accelerator.prepare(made, optimizer)
    accelerator.backward(prepared(part(tiny_batch(items=8), first, rank()), 2))
    return {name: p.grad for name, p in made.named_parameters() if p.grad is not None}


def fitted(
    peft_model: PeftModel, **options: Any
) -> tuple[Posterior, dict[str, Tensor], list[dict[str, float]]]:
    start = posterior(peft_model)
    result = fit(start.model, start.guide, batches(), **OPTIONS, **options)
    return result.posterior, parameters(start.model, start.guide), result.history


def predicted(made: Posterior) -> list[Any]:
    return made.predict(batches()[:2], num_draws=4).log_probs.tolist()


def frozen(peft_model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the base model, without the head that was put aside, which is never run."""
    named = peft_model.named_parameters()
    return [p for name, p in named if not p.requires_grad and "original_module" not in name]


def blocks(peft_model: PeftModel) -> nn.Module:
    """The list of blocks of a base model."""
    return next(module for module in peft_model.modules() if isinstance(module, nn.ModuleList))


def held(peft_model: PeftModel) -> int:
    """The bytes of the base model that lie in this process."""
    local = (p.to_local() if isinstance(p, DTensor) else p for p in frozen(peft_model))
    return sum(parameter.untyped_storage().nbytes() for parameter in local)


def most_held(peft_model: PeftModel, run: Callable[[], Any]) -> int:
    """The largest number of bytes that a block sees in this process while it runs."""
    seen: list[int] = []
    inner = [m for m in peft_model.modules() if m in {layer.base_layer for layer in _lora_layers(peft_model)}]
    handles = [m.register_forward_hook(lambda *_: seen.append(held(peft_model))) for m in inner]
    run()
    for handle in handles:
        handle.remove()
    return max(seen)


def _lora_layers(peft_model: PeftModel) -> list[Any]:
    return [module for module in peft_model.modules() if hasattr(module, "lora_A")]


def divided(peft_model: PeftModel) -> list[str]:
    """What is trained, and yet in parts."""
    named = peft_model.named_parameters()
    return [name for name, p in named if p.requires_grad and isinstance(p, DTensor)]


def complaint(run: Callable[[], Any]) -> str:
    try:
        run()
    except ValueError as error:
        return str(error)
    return ""


def alone() -> dict[str, Any]:
    """What one process has with the whole base model, before it knows of the other."""
    wanted: dict[str, Any] = {}
    for name in BASES:
        made = objective(base(name, sharded=False))
        wanted[name] = gradients(made, tiny_batch(items=8))
        whole = fitted(base(name, sharded=False), accumulate=2)
        wanted[f"{name}, fit"] = (*whole, predicted(whole[0]))
    return wanted


def together(name: str, wanted: dict[str, Any], folder: Path) -> dict[str, Any]:
    """How far both processes are from one, and what lies where."""
    found: dict[str, Any] = {}
    peft_model = base(name)
    batch, total = tiny_batch(items=8), sum(p.numel() * p.element_size() for p in frozen(peft_model))
    found["divided"], found["share"] = divided(peft_model), held(peft_model) / total
    found["share of blocks"] = sum(p.numel() * p.element_size() for p in frozen(blocks(peft_model))) / total
    made = objective(peft_model)
    found["whole batch"] = distance(gradients(made, batch), wanted[name])
    for split, first in SPLITS.items():
        found[split] = distance(half_gradients(made, first), wanted[name])
    found["checkpointed"] = distance(
        half_gradients(objective(base(name, checkpointed=True)), 4), wanted[name]
    )
    found["accelerate"] = distance(accelerated_gradients(objective(base(name)), 4), wanted[name])
    found["share at most"] = most_held(peft_model, lambda: gradients(made, batch)) / total
    ours, values, history = fitted(peft_model)
    found["fit"] = distance(values, wanted[f"{name}, fit"][1])
    pairs = zip(history, wanted[f"{name}, fit"][2], strict=True)
    found["history"] = max(abs(a[key] - b[key]) for a, b in pairs for key in a)
    found["predicted"] = predicted(ours)
    found["wanted"] = wanted[f"{name}, fit"][3]
    found["share afterwards"] = held(peft_model) / total
    if rank() == 0:
        ours.save(folder / name)
    return found


def by_themselves() -> dict[str, float]:
    """How far a base model in parts is from a whole one where only parts of it run."""
    results: dict[str, list[Tensor]] = {"generate": [], "embeddings": []}
    prompts = {key: value[:1] for key, value in tiny_batch(items=1).items() if key != "labels"}
    for sharded in (False, True):
        decoder, encoder = tiny_llama(), tiny_bert()
        if sharded:
            shard_base(decoder)
            shard_base(encoder)
        model = BayesianLora(decoder, InducingPrior(rows=3, cols=3), "next_token", num_data=40)
        writer = Posterior(model, perturbed(FlowGuide(model)))
        results["generate"].append(writer.generate(prompts, 4, max_new_tokens=4).log_probs)
        recipe = METHODS["balora"](encoder, "classification", 40)
        results["embeddings"].append(recipe.model.features(tiny_batch(), "embeddings"))
    return {name: float((whole - parts).abs().max()) for name, (whole, parts) in results.items()}


def faults(wanted: dict[str, Any]) -> dict[str, Any]:
    """What goes wrong where something is done wrongly."""
    found: dict[str, Any] = {
        "divergence per rank": distance(
            half_gradients(objective(base("bert"), DivergencePerRank), 4), wanted["bert"]
        )
    }
    kept_whole = sharding._kept_whole
    peft_model = tiny_bert()
    heads = {p for name, p in peft_model.named_parameters() if "modules_to_save" in name}
    sharding._kept_whole = lambda model: kept_whole(model) - heads
    shard_base(peft_model)
    sharding._kept_whole = kept_whole
    found["head divided"] = divided(peft_model)
    return found


def quantized() -> PeftModel:
    peft_model = tiny_bert()
    layer: Any = peft_model.get_base_model().bert.encoder.layer[0].output.dense
    layer.weight = nn.Parameter(torch.zeros_like(layer.weight, dtype=torch.uint8), requires_grad=False)
    return peft_model


def complaints() -> dict[str, str]:
    made = objective(tiny_bert())
    fully_shard(made)
    return {
        "once": complaint(lambda: shard_base(base("bert"))),
        "same": complaint(lambda: shard_base(tiny_bert(seed=rank()))),
        "quantised": complaint(lambda: shard_base(quantized())),
        "objective": complaint(lambda: made(tiny_batch())),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    number, place = int(sys.argv[1]), Path(sys.argv[2])
    reference = alone()
    distributed.init_process_group(
        "gloo", init_method=f"file://{place / 'meeting'}", rank=number, world_size=2
    )
    report: dict[str, Any] = {name: together(name, reference, place) for name in BASES}
    report["alone"] = by_themselves()
    report |= {"faults": faults(reference), "complaints": complaints()}
    (place / f"rank-{number}.json").write_text(json.dumps(report))
    distributed.destroy_process_group()
