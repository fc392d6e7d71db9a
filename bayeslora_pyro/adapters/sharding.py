"""A frozen base model that lies in several processes, a part in each (FSDP)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from bayeslora_pyro.adapters.adapter import PEFTS_OWN
from bayeslora_pyro.adapters.blocks import blocks_of
from bayeslora_pyro.adapters.fingerprints import keep_fingerprint, sample
from bayeslora_pyro.adapters.stacks import as_peft_model
from bayeslora_pyro.ranks import share_start, sum_over_ranks, world_size

__all__ = ["gathered", "shard_base"]

Result = TypeVar("Result")

RUN = "run_gathered"
"""The method of a sharded model that runs a function while what lies outside its blocks is whole."""


def shard_base(peft_model: nn.Module, device: torch.device | str | None = None) -> None:
    """Leaves each process its part of the frozen base model (FSDP); changes the PEFT model in place.

    A block of layers is gathered from all processes when it runs, forwards and backwards, and freed again afterwards;
    what lies outside the blocks, such as embeddings, while the model runs. LoRA's factors and all that is trained
    stay whole in each process, and so do the parameters of priors and guides. What comes out is what the whole model
    puts out; but every process has to run the model as often as the others do.

    It is torch's `fully_shard`, which computes on a GPU as on a processor, there from torch 2.7 on.

    Args:
        peft_model: The PEFT model, the same in all processes, before or after a model or a posterior is made of it.
        device: Where the parts go, of GPUs the current one; by default where the base model lies. From the processor
            they go there block by block, so that no GPU ever holds the whole.

    Raises:
        ValueError: If there is one process only, the model is in parts already, is quantised, or is not the same in all
            processes; or torch is too old.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    model = as_peft_model(peft_model)
    place = torch.device(next(model.parameters()).device if device is None else device)
    if place.type == "cuda":
        place = torch.device("cuda", torch.cuda.current_device())
    if isinstance(model, FSDPModule):
        raise ValueError("peft_model is in parts already: call shard_base once.")
    _check_processes(place)
    kept = _kept_whole(model)
    _check_same(model)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            keep_fingerprint(layer.get_base_layer())
    mesh = init_device_mesh(place.type, (world_size(),))
    with _put_aside(model, kept):
        for part in (*blocks_of(model), model):
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    for parameter in kept:
        parameter.data = parameter.data.to(place)
    vars(model)[RUN] = _call
    register_fsdp_forward_method(model, RUN)


def gathered(peft_model: nn.Module, run: Callable[[], Result]) -> Result:
    """Runs parts of a model, such as its embedding, or generates; if it is sharded, with these parts gathered."""
    within: Callable[[Callable[[], Result]], Result] = vars(peft_model).get(RUN, _call)
    return within(run)


def _call(run: Callable[[], Result]) -> Result:
    return run()


def _check_processes(device: torch.device) -> None:
    if world_size() == 1:
        raise ValueError(
            "shard_base needs several processes, each of which gets a part, and this is the only one: start them with "
            "torchrun or accelerate launch, or leave the base model whole."
        )
    if device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        raise ValueError(
            f"shard_base on a processor needs torch 2.7 or later, and this is {torch.__version__}: update torch, or "
            "leave the base model whole."
        )


def _kept_whole(model: nn.Module) -> set[nn.Parameter]:
    """What is not sharded: LoRA's factors, heads, what else is trained, and what does not lie in one group alone.

    Raises:
        ValueError: If a parameter is quantised.
    """
    groups = [{*block.parameters()} for block in blocks_of(model)]
    groups.append({*model.parameters()}.difference(*groups))
    times = Counter(parameter for group in groups for parameter in group)
    kept = {parameter for parameter, count in times.items() if count > 1 or parameter.dim() == 0}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad or any(part in f".{name}" for part in PEFTS_OWN):
            kept.add(parameter)
        elif not parameter.is_floating_point():
            raise ValueError(
                f"shard_base cannot divide {name!r}, which is quantised ({parameter.dtype}): load the base model "
                "without quantization, or leave it whole."
            )
    return kept


def _check_same(model: nn.Module) -> None:
    """Refuses processes with different base models, of which the parts would make up none of them."""
    frozen = (parameter for parameter in model.parameters() if not parameter.requires_grad)
    own = torch.tensor([value for parameter in frozen for value in sample(parameter)], dtype=torch.float64)
    first = own.to(_meeting_place(), copy=True)
    share_start([first])
    differ = (first.cpu() != own).any().double().to(first.device)
    sum_over_ranks([differ])
    if differ.item():
        raise ValueError(
            "peft_model is not the same in all processes: load the same files, and make what starts at random from the "
            "same seed."
        )


def _meeting_place() -> torch.device:
    """Where a tensor has to lie for the processes to exchange it."""
    nccl = torch.distributed.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


@contextmanager
def _put_aside(model: nn.Module, kept: set[nn.Parameter]) -> Iterator[None]:
    """Takes parameters out of their modules, so that `fully_shard` does not see them, and puts them back in place."""
    before: list[tuple[dict[str, Any], dict[str, Tensor | None]]] = []
    for module in model.modules():
        own: dict[str, Any] = module._parameters
        if any(parameter in kept for parameter in own.values() if parameter is not None):
            before.append((own, dict(own)))
    try:
        for own, all_of_them in before:
            for name, parameter in all_of_them.items():
                if parameter is not None and parameter in kept:
                    del own[name]
        yield
    finally:
        for own, all_of_them in before:
            in_order = {name: own.get(name, parameter) for name, parameter in all_of_them.items()}
            own.clear()
            own.update(in_order)
