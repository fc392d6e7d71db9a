"""Simulation-based calibration of posteriors that are exact, too narrow, too wide, and beside the truth."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from bayeslora_pyro import BayesianLora, GaussianPrior, MeanFieldGuide
from bayeslora_pyro import fit as fit_svi
from bayeslora_pyro.diagnostics import sbc
from bayeslora_pyro.diagnostics.simulation import SbcResult

from .tiny import tiny_batch, tiny_bert

ITEMS = 4
BATCH = {"x": torch.zeros(ITEMS), "labels": torch.full((ITEMS,), 99.0)}


def make_model():
    """The mean of four normal numbers, itself normal."""

    def model(batch):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        with pyro.plate("data", ITEMS):
            return pyro.sample("y", dist.Normal(mean, 1.0), obs=batch.get("labels"))

    return model


class Conjugate:
    """The exact posterior N(sum(y) / (n + 1), 1 / (n + 1)), stretched and shifted."""

    def __init__(self, stretch: float, shift: float) -> None:
        self.stretch, self.shift = stretch, shift

    def fit(self, model, guide, batch) -> None:
        deviation = (ITEMS + 1) ** -0.5
        self.loc = batch["labels"].sum() / (ITEMS + 1) + self.shift * deviation
        self.scale = self.stretch * deviation

    def __call__(self, batch):
        return pyro.sample("mean", dist.Normal(self.loc, self.scale))


def ranks_of(stretch: float = 1.0, shift: float = 0.0, **options) -> SbcResult:
    return sbc(
        make_model,
        lambda model: Conjugate(stretch, shift),
        BATCH,
        fit=lambda model, guide, batch: guide.fit(model, guide, batch),
        **{"num_simulations": 200, "num_draws": 9} | options,
    )


def test_the_exact_posterior_passes(untouched_rng) -> None:
    result = ranks_of()
    assert result.counts("mean").sum() == 200
    assert result.chi_square("mean")[1] > 0.05


@pytest.mark.parametrize(
    ("fault", "heaped"),
    [({"stretch": 0.5}, [0, 4]), ({"stretch": 2.5}, [2]), ({"shift": 1.0}, [0])],
    ids=["too-narrow", "too-wide", "beside"],
)
def test_planted_faults_fail(fault, heaped) -> None:
    result = ranks_of(**fault)
    assert result.chi_square("mean")[1] < 1e-4
    assert all(result.counts("mean")[place] > 50 for place in heaped)


def test_chi_square_by_hand() -> None:
    result = SbcResult({"x": torch.tensor([0, 0, 0, 0, 1, 1]).numpy()}, 3)
    value, probability = result.chi_square("x", num_bins=2)
    assert (value, probability) == (pytest.approx(6.0), pytest.approx(0.0143, abs=1e-4))
    with pytest.raises(ValueError, match="divide num_draws"):
        result.counts("x", 3)


def test_a_language_model_and_a_fit() -> None:
    def make():
        return BayesianLora(tiny_bert(num_layers=1), GaussianPrior(0.5), num_data=5)

    result = sbc(
        make,
        MeanFieldGuide,
        tiny_batch(),
        fit=lambda model, guide, batch: fit_svi(model, guide, [batch], num_steps=1, progress=False),
        num_simulations=2,
        num_draws=4,
        quantities=lambda values: {"size": values["A_2x16.W"].norm()},
    )
    assert result.ranks["size"].shape == (2,)


def test_bad_numbers() -> None:
    with pytest.raises(ValueError, match="num_draws should be at least 1, got 0"):
        ranks_of(num_draws=0)
