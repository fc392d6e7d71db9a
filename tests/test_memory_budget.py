"""The memory of a prediction: draws that are held or made anew, and the peak of both with activations."""

from collections.abc import Callable

import pytest
import torch

from bayeslora_pyro.passes import FactorDraws
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.types import Weights

from .test_posterior import posterior_of
from .test_scale_benchmarks import load, scripts_by_name  # noqa: F401  (a fixture)
from .tiny import tiny_batch

DRAWS, BUDGET = (1, 3, 16, 128), 2**17


def made_by(posterior: Posterior) -> Callable[[int, int], Weights]:
    return lambda first, count: posterior.weights(count, 3, first)


def test_draws_that_are_made_anew_are_those_that_are_held() -> None:
    posterior = posterior_of("mean_field")
    held, anew = (FactorDraws(made_by(posterior), 5, budget) for budget in (None, 1))
    assert (held.bytes_of_one, anew.held_bytes) == (0, 0)
    assert held.held_bytes == 5 * anew.bytes_of_one > 0
    assert anew.random == held.random
    for first, stop in ((0, 1), (1, 4), (3, 5)):
        for name, values in held.between(first, stop).items():
            assert torch.equal(anew.between(first, stop)[name], values)


@pytest.mark.parametrize("budget", [None, 1], ids=["held", "anew"])
def test_a_factor_that_moves_in_the_last_draw_alone_is_random(budget: int | None) -> None:
    def make(first: int, count: int) -> Weights:
        values = torch.zeros(4, 3, 1, 1)
        values[3, 1] = 1.0
        return {"A": values[first : first + count]}

    assert FactorDraws(make, 4, budget).random == {"A": [False, True, False]}
    assert FactorDraws(make, 3, budget).random == {"A": [False, False, False]}


def peaks(posterior: Posterior) -> list[int]:
    found = []
    for num_draws in DRAWS:
        with load("predict_memory").LivePeak() as live:
            posterior.predict([tiny_batch(), tiny_batch()], num_draws, memory_budget=BUDGET)
        found.append(live.peak)
    return found


def test_the_peak_keeps_to_the_budget_however_many_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior = posterior_of("mean_field")
    assert max(peaks(posterior)) <= 1.1 * BUDGET

    monkeypatch.setattr("bayeslora_pyro.passes.SHARE_OF_DRAWS", float("inf"))  # a fault: all are held, always
    assert max(peaks(posterior)) > 1.1 * BUDGET
