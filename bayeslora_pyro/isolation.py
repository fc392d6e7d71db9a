"""What torch and Pyro keep globally, lent for the time of a context and then given back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch

__all__ = ["derive_seed", "local_rng", "private_pyro"]


def derive_seed(*key: int | str) -> int:
    """Turns a key, such as a seed and a step, into a seed of its own."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")


@contextmanager
def local_rng(*key: int | str) -> Iterator[None]:
    """Seeds torch from a key for the time of a context; afterwards its generators are as they were.

    Pyro and torch distributions draw from the global generators only, so these are lent, not touched. Within the
    context, :func:`torch.manual_seed` may be called again.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(derive_seed(*key))
        yield


@contextmanager
def private_pyro() -> Iterator[None]:
    """Runs Pyro with an empty store of parameters, which no other code sees, and without validation."""
    store = pyro.get_param_store()  # noqa: TID251
    with store.scope(), pyro.validation_enabled(False):
        yield
