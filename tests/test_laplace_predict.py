"""Predictions of a Laplace approximation: joint, independent, probit, bridge, through the weights, in the network."""

from typing import Any, cast

import pytest
import torch

from bayeslora_pyro import (
    BayesianLora,
    Choice,
    DeltaGuide,
    LaplaceGuide,
    MeanFieldGuide,
    Posterior,
    Regression,
    laplace_posterior,
)
from bayeslora_pyro.curvature import covariances, linearised, linearised_batches, record
from bayeslora_pyro.curvature.linearised import bridge, probit, root_of

from .exact import rand
from .laplace_cases import classifier, data, moments
from .tiny import tiny_batch, tiny_bert, tiny_llama

DRAWN = ("joint", "independent", "weights")


def classes(count: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    root = rand(4, count, count, seed=2)
    return 2 * rand(4, count, seed=1), root @ root.mT


@pytest.mark.parametrize("kind", ["classification", "choice", "options"])
def test_draws_have_the_mean_and_the_covariance_of_the_scores(kind: str) -> None:
    if kind == "classification":
        model = classifier()
    else:
        likelihood = Choice((5, 6, 7)) if kind == "choice" else Choice()
        model = BayesianLora(tiny_llama(dtype=torch.float64), "point", likelihood, num_data=15)
    batches, test = data(kind=kind), tiny_batch(kind, seed=7)
    found = laplace_posterior(model, batches)
    mean, covariance = moments(found, test)
    for predictive, count in (("joint", 4000), ("weights", 5000)):
        drawn = linearised_batches(
            found.model,
            found.guide.factor_posteriors(),
            found.mean_adapter(),
            [test],
            count,
            0,
            predictive,
            lambda each, _: (each.logits,),
            found.weights(count) if predictive == "weights" else None,
        )[0][1][0].detach()
        shift = (drawn - mean).mean(-1, keepdim=True)  # what normalising took away
        centred = torch.eye(3, dtype=torch.float64) - 1 / 3
        moved = drawn - mean - shift
        wanted = centred @ covariance @ centred
        error = (torch.einsum("snc,snd->ncd", moved, moved) / count - wanted).flatten(1).norm(dim=1)
        assert (error < 0.1 * wanted.flatten(1).norm(dim=1) + 1e-9).all(), predictive
        assert moved.mean(0).abs().max() < 5 * (wanted.diagonal(dim1=-2, dim2=-1).max() / count).sqrt()


@pytest.mark.parametrize(
    "settings",
    [{}, {"max_dense": 4, "rank": 2}, {"structure": "diagonal"}],
    ids=["whole", "low rank", "diagonal"],
)
def test_many_precisions_at_once_are_each_alone(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share the turn into the eigenvectors; posteriors of another curvature do not."""
    model, test, grid = classifier(), tiny_batch(seed=7), (0.01, 1.0, 30.0)
    alone = [laplace_posterior(model, data(), precision=each, **settings) for each in grid]
    other = laplace_posterior(model, [tiny_batch(seed=9)], precision=2.0, **settings)
    wanted = [moments(found, test)[1] for found in (*alone, other)]
    guide = cast(LaplaceGuide, laplace_posterior(model, data(), precision=5.0, **settings).guide)
    several = [guide.set_precision(each).factor_posteriors() for each in grid]
    kept = record(alone[0].model, alone[0].mean_adapter(), test)
    together = covariances(alone[0].model, [*several, other.guide.factor_posteriors()], kept)
    torch.testing.assert_close(together, wanted)
    if "structure" not in settings:
        monkeypatch.setattr(linearised._Turned, "serves", lambda *_: True)  # a planted fault
        kept = record(alone[0].model, alone[0].mean_adapter(), test)
        wrong = covariances(alone[0].model, [*several, other.guide.factor_posteriors()], kept)
        assert not torch.allclose(wrong[-1], wanted[-1], rtol=1e-3)


@pytest.mark.parametrize("precision", [0.0, -1.0, float("inf"), float("nan")])
def test_a_precision_is_positive(precision: float) -> None:
    guide = LaplaceGuide(classifier().with_prior("gaussian"))
    with pytest.raises(ValueError, match=f"precision should be positive, and is {precision}"):
        guide.set_precision(precision)


def test_a_common_shift_of_all_logits_is_no_uncertainty() -> None:
    """It discriminates: joint draws know it, independent ones and probit do not."""
    mean = classes()[0]
    shift = 9 * torch.ones(4, 3, 3, dtype=torch.float64)
    noise = rand(500, 4, 3, seed=3)
    joint = (mean + (root_of(shift) @ noise.unsqueeze(-1)).squeeze(-1)).softmax(-1).mean(0)
    torch.testing.assert_close(joint, mean.softmax(-1))
    independent = (mean + 3 * noise).softmax(-1).mean(0)
    for flat in (independent, probit(mean, shift).exp()):
        assert (flat - mean.softmax(-1)).abs().max() > 0.05


def test_the_approximations_against_many_draws() -> None:
    """The worked case of the literature, f = (4, 0, 0) with covariance 9 I: draws .695, probit .766."""
    mean = torch.tensor([[4.0, 0.0, 0.0]], dtype=torch.float64)
    covariance = 9 * torch.eye(3, dtype=torch.float64)[None]
    drawn = (mean + 3 * rand(200_000, 3, seed=0)).softmax(-1).mean(0)
    assert drawn[0].item() == pytest.approx(0.695, abs=0.004)
    assert probit(mean, covariance).exp()[0, 0].item() == pytest.approx(0.766, abs=0.001)
    sure = bridge(mean, 0.05 * covariance).exp()
    assert sure[0].sum().item() == pytest.approx(1)
    assert sure.argmax() == 0


@pytest.mark.parametrize("approximation", [probit, bridge])
def test_closed_forms_keep_the_order_under_alike_noise_and_know_missing_answers(approximation: Any) -> None:
    mean, _ = classes(4)
    alike = torch.eye(4, dtype=torch.float64).expand(4, 4, 4)
    torch.testing.assert_close(approximation(mean, alike).argsort(-1), mean.argsort(-1))
    three = mean[:, :3]
    padded = torch.cat([three, torch.full((4, 1), -torch.inf)], dim=-1)
    wide = torch.nn.functional.pad(alike[:, :3, :3], (0, 1, 0, 1))
    found = approximation(padded, wide)
    assert (found[:, 3] == -torch.inf).all()
    torch.testing.assert_close(found[:, :3], approximation(three, alike[:, :3, :3]))


@pytest.mark.parametrize("predictive", [*DRAWN, "probit", "bridge"])
def test_draws_belong_to_items_and_not_to_batches(predictive: str) -> None:
    found, batch = laplace_posterior(classifier(), data(), predictive=predictive), tiny_batch(seed=7)
    whole = found.predict([batch], 20).log_probs
    single = found.predict([{k: v[[n]] for k, v in batch.items()} for n in range(5)], 20).log_probs
    torch.testing.assert_close(single, whole)
    torch.testing.assert_close(found.predict([batch], 7).log_probs, whole[:7])
    assert len(whole) == (20 if predictive in DRAWN else 1)
    scored = found.log_likelihood([batch], 20)
    torch.testing.assert_close(
        scored, whole.gather(-1, batch["labels"].expand(len(whole), 5)[..., None])[..., 0]
    )
    if predictive in DRAWN:
        assert not torch.equal(found.predict([batch], 20, seed=1).log_probs, whole)


def test_probabilities_are_averaged_and_not_logits() -> None:
    """A defect of released code: the average of logits is the MAP again."""
    found, test = laplace_posterior(classifier(), data(), precision=0.01), [tiny_batch(seed=7)]
    point = Posterior(found.model, DeltaGuide(found.model)).predict(test, 1).probs
    prediction = found.predict(test, 2000)
    logits = prediction.log_probs - prediction.log_probs.mean(-1, keepdim=True)
    assert (logits.mean(0).softmax(-1) - point).abs().max() < 0.08
    assert (prediction.probs - point).abs().max() > 0.15
    assert (prediction.probs.max(-1).values < point.max(-1).values + 0.05).all()


def test_numbers_have_both_kinds_of_noise() -> None:
    model = BayesianLora(tiny_bert(num_labels=1, dtype=torch.float64), "point", Regression(scale=0.5), 15)
    found = laplace_posterior(model, data(kind="regression"))
    test = tiny_batch("regression", seed=7)
    mean, covariance = moments(found, test)
    prediction: Any = found.predict([test], 4000)
    torch.testing.assert_close(prediction.scale, torch.full_like(prediction.scale, 0.5))
    torch.testing.assert_close(prediction.loc.var(0), covariance[:, 0, 0], rtol=0.1, atol=1e-3)
    torch.testing.assert_close(prediction.loc.mean(0), mean[:, 0], rtol=0.1, atol=0.1)
    with pytest.raises(
        ValueError, match=r"predictive='probit' is about classes: predict numbers with 'joint'"
    ):
        found.predict([test], predictive="probit")


def test_draws_in_the_network_come_with_a_warning() -> None:
    found, test = laplace_posterior(classifier(), data()), [tiny_batch(seed=7)]
    with pytest.warns(
        UserWarning, match=r"lose accuracy, often nearly all of it. Predict with predictive='joint'"
    ):
        sampled = found.predict(test, 8, predictive="network")
    assert sampled.log_probs.shape == (8, 5, 3)


def test_any_gaussian_over_factors_can_be_linearised_and_others_say_why_not() -> None:
    model = BayesianLora(tiny_bert(), "gaussian", num_data=15)
    posterior, test = Posterior(model, MeanFieldGuide(model, scale=1e-4)), [tiny_batch(seed=7)]
    close = posterior.predict(test, 400, predictive="weights").log_probs
    torch.testing.assert_close(close, posterior.predict(test, 400).log_probs, rtol=0, atol=1e-4)
    inducing = BayesianLora(tiny_bert(), "inducing", num_data=15)
    posterior = Posterior(inducing, MeanFieldGuide(inducing))
    with pytest.raises(
        ValueError, match=r"depend on their latent site 'V'.*predict with predictive='network'"
    ):
        posterior.predict(test, predictive="joint")
    with pytest.raises(ValueError, match=r"predictive should be one of network, centred, joint.*is 'bayes'"):
        posterior.predict(test, predictive="bayes")
