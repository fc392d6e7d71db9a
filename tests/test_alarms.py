"""Each alarm, raised and not raised, on containers whose every number is known; and on fitted posteriors."""

import math

import numpy as np
import pytest
import torch

from bayeslora_pyro import BayesianLora, InducingPrior, MeanFieldGuide, Posterior
from bayeslora_pyro.diagnostics import ALARMS, alarms, page_posterior, page_predictions, to_arviz
from bayeslora_pyro.diagnostics.arrays import from_arrays
from bayeslora_pyro.diagnostics.facts import collect_facts

from .fakes import FakePosterior
from .pages import page_of
from .tiny import tiny_batch, tiny_bert

FACTORS, STEPS = 12, 400


def history(rise: float = 0.0, kl_w: float = 3.0, kl_weight: float = 1.0) -> dict[str, np.ndarray]:
    """A fit with noise of known size that rises by `rise` in its last quarter; its KL is all of W."""
    steps = np.arange(STEPS)
    line = rise * np.clip(steps - 0.75 * STEPS, 0, None) / (0.25 * STEPS)
    fit = -1 + 0.02 * np.random.default_rng(0).normal(size=STEPS) + line
    warmup = kl_weight * np.clip((steps + 1) / (0.3 * STEPS), 0, 1)
    parts = {"expected_log_likelihood": fit, "kl": np.full(STEPS, kl_w), "kl_weight": warmup}
    return {name: values[None] for name, values in (parts | {"kl_W": parts["kl"]}).items()}


def container(log_weights: np.ndarray | None = None, lp_data: str = "fitted_to", **left: np.ndarray):
    past = history() | {name: value for name, value in left.items() if value.shape[-1] == STEPS}
    factors = {name: value for name, value in left.items() if value.shape[-1] == FACTORS}
    groups = {"posterior": {"x": np.zeros((1, 60))}, "constant_data": past | factors}
    if log_weights is not None:
        zeros = np.zeros((1, len(log_weights)))
        groups["sample_stats"] = {
            "log_prior": zeros,
            "log_guide": zeros,
            "log_likelihood_sum": log_weights[None],
        }
        groups["sample_stats"]["lp"] = log_weights[None]
        groups["posterior"]["x"] = zeros
    dims = {name: ["chain", "step"] for name in past} | {name: ["chain", "factor"] for name in factors}
    return from_arrays(groups, dims, {}, {"lp_data": lp_data, "kl_weight": 1.0})


def most(value: float, other: float, share: int = 7) -> np.ndarray:
    """A value for so many of twelve factors, another for the rest."""
    return np.where(np.arange(FACTORS) < share, value, other)[None]


WILD, TAME = (sd * np.random.default_rng(1).normal(size=400) for sd in (3.0, 0.3))

RAISED = {
    "posterior collapsed": [{"factor_kl": most(0.2, 50.0)}],
    "adapter a no-op": [{"mean_update_change": most(1e-4, 0.1)}],
    "noise scale at its bound": [{"noise_scale": most(0.995, 0.5)}, {"noise_scale": most(1e-4, 0.5)}],
    "KL swamps the likelihood": [history(kl_w=11.0), history(kl_w=1100.0, kl_weight=0.01)],
    "k-hat above 0.7": [{"log_weights": WILD}],
    "ELBO still rising": [history(rise=0.1)],
}

QUIET = {
    "posterior collapsed": [{"factor_kl": most(0.2, 50.0, share=6)}, {"factor_kl": most(1.1, 1.1)}, {}],
    "adapter a no-op": [
        {"mean_update_change": most(1e-4, 0.1, share=6)},
        {"mean_update_change": most(np.nan, 0.1)},
    ],
    "noise scale at its bound": [
        {"noise_scale": most(0.98, 0.002)},
        {"noise_scale": most(0.995, 0.5, share=6)},
    ],
    "KL swamps the likelihood": [history(kl_w=9.0), history(kl_w=1100.0, kl_weight=0.008)],
    "k-hat above 0.7": [
        {"log_weights": TAME},
        {"log_weights": WILD, "lp_data": "batches"},
        {"log_weights": WILD[:20]},
    ],
    # Of a rise of 0.005 the noise is sure, but it is small; the warm-up of the KL weight is no rise at all.
    "ELBO still rising": [
        history(rise=0.005),
        history(kl_w=5.0),
        {n: v[:, :40] for n, v in history(rise=9.0).items()},
    ],
}


@pytest.mark.parametrize(("name", "left"), [(name, left) for name in ALARMS for left in RAISED[name]])
def test_an_alarm_is_raised(name, left) -> None:
    found = alarms(container(**left))
    assert [alarm.name for alarm in found] == [name]
    assert all(math.isfinite(value) for value in found[0].numbers.values())
    assert str(found[0]).startswith(f"{name}: ")


@pytest.mark.parametrize(("name", "left"), [(name, left) for name in ALARMS for left in QUIET[name]])
def test_an_alarm_is_not_raised(name, left) -> None:
    assert name not in [alarm.name for alarm in alarms(container(**left))]


def test_the_numbers_behind_an_alarm() -> None:
    (alarm,) = alarms(container(**history(rise=0.1)))
    assert alarm.numbers["rise"] == pytest.approx(0.1, abs=0.02)
    # Of the slope of a line through n points with noise s, times n - 1: s sqrt(12 / n), nearly.
    assert alarm.numbers["standard_error"] == pytest.approx(0.02 * math.sqrt(12 / 100), rel=0.2)
    (alarm,) = alarms(container(factor_kl=most(0.2, 50.0)))
    assert (alarm.numbers["share"], alarm.numbers["median_kl"]) == (pytest.approx(7 / 12), pytest.approx(0.2))


def posterior_of(scale: float, loc: float, noise_scale: float = 0.5, factor: float = 1.0) -> Posterior:
    model = BayesianLora(tiny_bert(num_layers=1), InducingPrior(rows=2, cols=2, scale=factor), num_data=10)
    guide = MeanFieldGuide(model, scale=scale, noise_scale=noise_scale)
    with torch.no_grad():
        for name, parameter in guide.named_parameters():
            if name.endswith("loc"):
                parameter.fill_(loc)
    return Posterior(model, guide)


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"scale": 0.1, "loc": 2.0}, []),
        ({"scale": 0.99, "loc": 0.0}, ["posterior collapsed", "adapter a no-op"]),
        ({"scale": 0.1, "loc": 2.0, "factor": 1e-3}, ["adapter a no-op"]),
        ({"scale": 0.1, "loc": 2.0, "noise_scale": 0.999}, ["noise scale at its bound"]),
    ],
)
def test_alarms_of_a_real_posterior(options, names) -> None:
    assert [alarm.name for alarm in alarms(posterior_of(**options), num_draws=2)] == names


def test_what_a_fit_left_behind() -> None:
    posterior = posterior_of(scale=0.1, loc=2.0, noise_scale=0.25)
    facts = collect_facts(posterior, 2, 0)
    kl = 4 * (0.5 * (0.1**2 + 2.0**2 - 1) - math.log(0.1))
    np.testing.assert_allclose(facts["factor_kl"], kl, rtol=1e-5)
    np.testing.assert_allclose(facts["noise_scale"], 0.25, rtol=1e-5)
    means, model = posterior.mean_adapter(), posterior.model
    for index, name in enumerate(model.stacks[0].adapters):
        update = (
            2 * means["B_16x2"][index].double() @ means["A_2x16"][index].double()
        )  # scaling = lora_alpha / r
        expected = float(update.norm() / model.adapter.frozen_weight(name).norm())
        assert facts["mean_update_change"][index] == pytest.approx(expected, rel=1e-4)
        assert facts["mean_update_change"][index] != pytest.approx(expected / 2, rel=0.1)  # planted: unscaled


def test_alarms_are_on_the_page(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(page_predictions, "NUM_RESAMPLES", 2)
    page, _ = page_of(to_arviz(posterior_of(0.99, 0.0), [tiny_batch()], num_draws=4), tmp_path)
    assert "What should be looked at" in page.text
    assert "posterior collapsed" in page.text
    assert "The effective rank" in page.text
    assert page_posterior.findings(to_arviz(FakePosterior(num_steps=0), num_draws=4)) is None
