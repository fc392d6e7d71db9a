"""What torch, Pyro and modules keep as a state, lent for the time of a context and then given back."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyro
import torch
from torch import nn

__all__ = ["derive_seed", "evaluating", "local_rng", "private_pyro", "set_seed", "training_modes"]


def derive_seed(*key: int | str) -> int:
    """Turns a key, such as a seed and a step, into a seed of its own."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")


def set_seed(seed: int) -> None:
    """Seeds torch's generators, within :func:`local_rng`.

    :func:`torch.manual_seed` also notes the seed for each kind of accelerator that may come to be used, with a trace of
    the stack: half a millisecond, where a draw of all factors takes seven.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextmanager
def local_rng(*key: int | str) -> Iterator[None]:
    """Seeds torch from a key for the time of a context; afterwards its generators are as they were.

    Pyro and torch distributions draw from the global generators only, so these are lent, not touched. Within the
    context, :func:`set_seed` may be called again.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        set_seed(derive_seed(*key))
        yield


@contextmanager
def private_pyro() -> Iterator[None]:
    """Runs Pyro with an empty store of parameters, which no other code sees, and without validation."""
    store = pyro.get_param_store()  # noqa: TID251
    with store.scope(), pyro.validation_enabled(False):
        yield


@contextmanager
def training_modes(*modules: nn.Module, mode: Callable[[nn.Module], bool]) -> Iterator[None]:
    """Puts each part of some modules into train mode (True) or eval mode, and back into its own afterwards."""
    before = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for part, _ in before:
            part.training = mode(part)
        yield
    finally:
        for part, training in before:
            part.training = training


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Neither gradients, nor dropout, nor a trace in Pyro's store of parameters."""
    with training_modes(*modules, mode=lambda _: False), torch.no_grad(), private_pyro():
        yield
