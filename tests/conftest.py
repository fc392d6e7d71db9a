"""What holds in every test: no network, fixed seeds, checked distributions, a clean global state."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"  # before Hugging Face is imported: a test that needs the network is broken
os.environ["MPLBACKEND"] = "Agg"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)

from collections.abc import Iterator

import numpy as np
import pyro
import pytest
import torch

collect_ignore = [] if hasattr(torch.cpu.Stream, "record_event") else ["test_sharding.py"]
"""FSDP on a processor needs torch 2.7: on 2.6, `shard_base` refuses."""


@pytest.fixture(autouse=True)
def clean_state(request: pytest.FixtureRequest) -> Iterator[None]:
    """Starts from empty global state and fails a test that leaves something in Pyro's parameter store.

    The store is the user's. A test of plain Pyro inference, which fills it, says so:
    ``@pytest.mark.fills_param_store``.
    """
    pyro.clear_param_store()
    pyro.enable_validation(True)
    torch.manual_seed(0)
    np.random.seed(0)
    yield
    left = sorted(pyro.get_param_store().keys())
    pyro.clear_param_store()
    if left and request.node.get_closest_marker("fills_param_store") is None:
        pytest.fail(f"Pyro's global parameter store was left with {left}.")


@pytest.fixture
def untouched_rng() -> Iterator[None]:
    """Fails a test that moves PyTorch's or NumPy's global generator."""
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    yield
    if not torch.equal(torch_state, torch.get_rng_state()):
        pytest.fail("PyTorch's global generator was moved.")
    if numpy_state != np.random.get_state()[1].tolist():
        pytest.fail("NumPy's global generator was moved.")


@pytest.fixture
def local_parameters() -> Iterator[None]:
    """Models and guides read their parameters from themselves, not from Pyro's store."""
    with pyro.settings.context(module_local_params=True):
        yield
