"""Predictive checks of prior and posterior, against frequencies that are known."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from bayeslora_pyro import BayesianLora, MeanFieldGuide, Posterior
from bayeslora_pyro.diagnostics import page_checks, predictive_check, to_arviz
from bayeslora_pyro.diagnostics.arrays import datasets, from_arrays

from .fakes import FakeNumbers, FakePosterior, FakeTexts, items, number_items, values
from .tiny import tiny_batch, tiny_bert, tiny_llama


def container(prior: float, posterior: float, observed: np.ndarray):
    """Two classes, drawn with one probability under the prior and another under the posterior."""
    rng = np.random.default_rng(0)
    groups = {"posterior": {"x": np.zeros((1, 200))}, "observed_data": {"y": observed}}
    for name, share in {"prior": prior, "posterior": posterior}.items():
        log_probs = np.broadcast_to(np.log([1 - share, share]), (1, 200, len(observed), 2))
        y = (rng.random((1, 200, len(observed))) < share).astype(int)
        groups[f"{name}_predictive"] = {"y": y, "log_probs": log_probs}
    dims = {"y": ["item"], "log_probs": ["item", "label"]}
    return from_arrays(groups, dims, {"label": ["no", "yes"]})


def test_frequencies_and_confidence() -> None:
    observed = np.arange(100) % 10 < 3
    check = predictive_check(container(0.9, 0.3, observed.astype(int)))
    assert check.names == ("no", "yes", "confidence")
    assert check.observed.tolist() == pytest.approx([0.7, 0.3, 0.7])
    assert check.drawn["prior"].mean(0).tolist() == pytest.approx([0.1, 0.9, 0.9], abs=0.01)
    assert check.drawn["posterior"].mean(0).tolist() == pytest.approx([0.7, 0.3, 0.7], abs=0.01)
    assert check.tails()["yes"] > 0.5
    assert check.tails("prior")["yes"] == 0  # the planted misfit
    assert isinstance(check.figure(), Figure)


def test_numbers() -> None:
    check = predictive_check(to_arviz(FakeNumbers(), number_items(200, seed=1), num_draws=50))
    assert check.names == ("mean", "sd", "min", "max")
    assert set(check.drawn) == {"posterior"}
    assert all(share > 0.01 for share in check.tails().values())
    narrow = predictive_check(to_arviz(FakeNumbers(noise_scale=0.1), number_items(200), num_draws=50))
    assert narrow.tails()["sd"] == 0


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_prior_predicts_with_its_own_draws(kind) -> None:
    labels = 1 if kind == "regression" else 3
    model = BayesianLora(tiny_bert(num_layers=1, num_labels=labels), "inducing", kind, num_data=5)
    posterior, batch = Posterior(model, MeanFieldGuide(model)), tiny_batch(kind)
    found = to_arviz(posterior, iter([batch]), num_draws=3, seed=5, prior_predictive=True)
    draws = posterior.sample_prior(3, 5)
    weights = {stack.name: draws[f"{stack.name}.W"] for stack in model.stacks}
    with torch.no_grad():
        expected = [
            model.likelihood.distribution(model.run_with({n: w[s] for n, w in weights.items()}, batch), batch)
            for s in range(3)
        ]
    name, read = ("loc", lambda d: d.mean) if kind == "regression" else ("log_probs", lambda d: d.logits)
    ours = values(found, "prior_predictive", name)[0]
    np.testing.assert_allclose(ours, torch.stack([read(each) for each in expected]), atol=1e-5)
    assert not np.allclose(ours, values(found, "posterior_predictive", name)[0], atol=1e-3)
    assert set(predictive_check(found).drawn) == {"prior", "posterior"}


def test_the_page_shows_a_check_that_was_asked_for() -> None:
    source = page_checks.checks(container(0.9, 0.3, np.array([0, 1, 0])))
    assert "Do data from the model look like the data?" in source
    assert "confidence" in source
    assert page_checks.checks(to_arviz(FakePosterior(), items(), num_draws=4)) is None


def test_what_has_no_check() -> None:
    with pytest.raises(ValueError, match="posterior_predictive and observed_data"):
        predictive_check(to_arviz(FakePosterior(), items(labelled=False), num_draws=4))
    with pytest.raises(ValueError, match="method predict_prior"):
        to_arviz(FakePosterior(), items(), num_draws=4, prior_predictive=True)
    with pytest.raises(ValueError, match="method predict_prior"):
        to_arviz(FakeTexts(), [{"score": torch.zeros(3)}], num_draws=4, prior_predictive=True)
    model = BayesianLora(tiny_llama(), "inducing", "next_token", num_data=5)
    with pytest.raises(ValueError, match="prior_predictive=True needs"):
        to_arviz(
            Posterior(model, MeanFieldGuide(model)),
            [tiny_batch("next_token")],
            num_draws=2,
            prior_predictive=True,
        )
    assert "prior_predictive" not in datasets(to_arviz(FakePosterior(), items(), num_draws=4))
