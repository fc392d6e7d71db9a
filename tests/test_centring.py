"""Draws centred on the mean adapter: linear in the noise, as confident as those of the network, and without labels."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bayeslora_pyro import (
    BayesianLora,
    Choice,
    MeanFieldGuide,
    Posterior,
    Regression,
    centring,
    report,
    to_arviz,
)
from bayeslora_pyro.centring import centre, matching_temperature
from bayeslora_pyro.digests import signed
from bayeslora_pyro.guides import GUIDES

from .exact import close, perturb, rand
from .test_folders import bare
from .tiny import tiny_batch, tiny_bert, tiny_llama


def scores(gain: float = 0.6) -> tuple[Tensor, Tensor]:
    """The scores of a mean adapter, and of opposite pairs about a gain of it."""
    mean, odd = 3 * rand(50, 3), 0.5 * rand(4, 50, 3, seed=1)
    return mean, gain * mean + torch.stack([odd, -odd], 1).flatten(0, 1)


def check_what_is_left(even: Tensor) -> None:
    """Draws without a gain are as they were, whatever even part is added to all of them."""
    mean, draws = scores(gain=1.0)
    close(centre(mean, draws + even, 1.0), draws)


def check_gain(gain: float) -> None:
    mean, draws = scores(gain)
    assert matching_temperature([(mean, draws)]) == pytest.approx(1 / gain, rel=1e-6)


def test_what_is_even_in_the_noise_goes() -> None:
    check_what_is_left(rand(1, 50, 3, seed=2))


@pytest.mark.parametrize("gain", [0.2, 0.6, 1.0, 1.5])
def test_the_temperature_is_the_inverse_of_the_gain(gain: float) -> None:
    check_gain(gain)


def test_batches_count_by_their_items() -> None:
    mean, draws = scores()
    parts = [(mean[:9], draws[:, :9]), (mean[9:], draws[:, 9:])]
    assert matching_temperature(parts) == pytest.approx(matching_temperature([(mean, draws)]))


def test_a_class_that_is_ruled_out_stays_so() -> None:
    mean, draws = scores()
    padded = [torch.nn.functional.pad(each, (0, 1), value=-torch.inf) for each in (mean, draws)]
    assert matching_temperature([(padded[0], padded[1])]) == pytest.approx(1 / 0.6, rel=1e-6)
    centred = centre(padded[0], padded[1], 2.0)
    assert centred[..., 3].isneginf().all()
    close(centred[..., :3], centre(mean, draws, 2.0))


def keeps_the_even_part(mean: Tensor, draws: Tensor, temperature: float) -> Tensor:
    return mean / temperature + draws - mean


def pairs_others(mean: Tensor, draws: Tensor, temperature: float) -> Tensor:
    return centring.centre(mean, draws.roll(1, 0), temperature)


@pytest.mark.parametrize("fault", [keeps_the_even_part, pairs_others])
def test_planted_faults_of_centre(fault: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "centre", fault)
    with pytest.raises(AssertionError):
        check_what_is_left(rand(1, 50, 3, seed=2))


def test_planted_fault_logits_averaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(centring, "mean_log_probs", lambda each: each.mean(0))
    with pytest.raises(AssertionError):
        check_gain(0.6)


def fitted(guide: str = "mean_field", prior: str = "inducing", scale: float = 0.3) -> Posterior:
    model = BayesianLora(tiny_bert(dtype=torch.float64), prior, num_data=20)
    made = GUIDES[guide](model)
    perturb(made, scale)
    return Posterior(model, made)


def test_small_noise_gives_the_draws_of_the_linearised_model() -> None:
    """What is left of the difference is of third order: a tenth of the noise, a thousandth of it."""
    errors = []
    for size in (0.03, 0.003):
        model = BayesianLora(tiny_bert(dtype=torch.float64), "gaussian", num_data=20)
        guide = MeanFieldGuide(model, scale=size)
        posterior = Posterior(model, guide, temperature=1.0)
        centred = posterior.predict([tiny_batch()], 4).log_probs
        linear = posterior.predict([tiny_batch()], 4, predictive="weights").log_probs
        network = posterior.predict([tiny_batch()], 4, predictive="network").log_probs
        errors.append(((centred - linear).abs().max(), (network - linear).abs().max()))
    (centred, network), (centred_small, network_small) = errors
    assert centred_small < 2e-3 * centred
    assert 5e-3 * network < network_small < 2e-2 * network


@pytest.mark.parametrize("kind", ["classification", "choice", "options"])
@pytest.mark.parametrize("num_draws", [1, 4, 5])
def test_draws_are_nested_and_labels_are_not_looked_at(kind: str, num_draws: int) -> None:
    if kind == "classification":
        model = BayesianLora(tiny_bert(dtype=torch.float64), num_data=20)
    else:
        likelihood = Choice((5, 6, 7)) if kind == "choice" else Choice()
        model = BayesianLora(tiny_llama(dtype=torch.float64), likelihood=likelihood, num_data=20)
    guide = MeanFieldGuide(model)
    perturb(guide, 0.3)
    batches = [tiny_batch(kind), tiny_batch(kind, seed=3)]
    bare = [{name: value for name, value in batch.items() if name != "labels"} for batch in batches]
    posterior = Posterior(model, guide).centred(bare)
    assert posterior.temperature == Posterior(model, guide).centred(batches).temperature
    assert posterior.temperature != 1.0
    every = posterior.predict(batches, 8).log_probs
    close(posterior.predict(batches, num_draws).log_probs, every[:num_draws])
    close(posterior.predict(batches, num_draws, memory_budget=1).log_probs, every[:num_draws])
    labels = torch.cat([batch["labels"] for batch in batches])
    observed = every.gather(-1, labels.expand(8, -1).unsqueeze(-1)).squeeze(-1)
    close(posterior.log_likelihood(batches, 8), observed)


def test_a_point_is_its_own_centre() -> None:
    posterior = fitted("delta")
    centred = posterior.centred([tiny_batch()])
    assert centred.temperature == pytest.approx(1.0, abs=1e-2)  # the scores are small: it hardly matters
    close(centred.predict([tiny_batch()], 2).log_probs, posterior.predict([tiny_batch()], 2).log_probs, 1e-3)


def test_it_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    posterior = fitted().centred([tiny_batch()])
    posterior.save(tmp_path / "fit")
    loaded = Posterior.load(tmp_path / "fit", bare().double())
    assert loaded.temperature == posterior.temperature
    assert loaded.predictive == "centred"
    again = loaded.predict([tiny_batch()], 4).log_probs
    assert torch.equal(again, posterior.predict([tiny_batch()], 4).log_probs)


def test_the_report_says_so_and_densities_are_those_of_the_network(tmp_path: Path) -> None:
    posterior = fitted().centred([tiny_batch()])
    batches = [tiny_batch(), tiny_batch(seed=3)]
    container = to_arviz(posterior, iter(batches), num_draws=4)  # a stream, which is gone through once
    page = report(container, tmp_path / "report.html").read_text()
    assert f"draws centred on their mean, at temperature {posterior.temperature:.2f}" in page
    shown = container["posterior_predictive"]["log_probs"].values[0]
    close(torch.tensor(shown), posterior.predict(batches, 4).log_probs.float(), 1e-6)
    summed = torch.tensor(container["sample_stats"]["log_likelihood_sum"].values[0])
    close(summed, posterior.predicting("network").log_likelihood(batches, 4).sum(-1), 1e-9)


def test_folders_from_before_are_read(tmp_path: Path) -> None:
    fitted().save(tmp_path / "fit")
    path = tmp_path / "fit" / "posterior_config.json"
    record = json.loads(path.read_text())
    del record["temperature"]
    path.write_text(json.dumps(signed(record | {"format": 2}, path.name)))
    loaded = Posterior.load(tmp_path / "fit", bare().double())
    assert (loaded.temperature, loaded.predictive) == (None, "network")


MISTAKES = {
    "a temperature": (
        lambda: fitted().predict([tiny_batch()], predictive="centred"),
        "centred\\(train_loader\\)",
    ),
    "opposites": (
        lambda: fitted("mixture").centred([tiny_batch()]),
        "have no opposites: predict with 'network'",
    ),
    "one posterior": (
        lambda: fitted("amortised_noise", "relative_noise").centred([tiny_batch()]),
        "'network'",
    ),
    "a positive one": (
        lambda: Posterior(fitted().model, fitted().guide, temperature=-1.0),
        "should be positive",
    ),
    "classes": (
        lambda: Posterior(
            model := BayesianLora(tiny_bert(dtype=torch.float64), likelihood=Regression(), num_data=20),
            MeanFieldGuide(model),
        ).centred([tiny_batch()]),
        "classes and choices",
    ),
}


@pytest.mark.parametrize("needed", MISTAKES)
def test_what_it_needs(needed: str) -> None:
    run, message = MISTAKES[needed]
    with pytest.raises(ValueError, match=message):
        run()
