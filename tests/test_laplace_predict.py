"""Predictions of a Laplace approximation, its life as a guide, its folder, and what it refuses."""

import math
from typing import Any

import pytest
import torch

from bayeslora_pyro import (
    BayesianLora,
    Choice,
    DeltaGuide,
    FitConfig,
    LaplaceGuide,
    MeanFieldGuide,
    Posterior,
    Regression,
    fit,
    laplace_posterior,
    to_arviz,
)
from bayeslora_pyro.curvature import linearised_batches
from bayeslora_pyro.curvature.linearised import bridge, probit, root_of
from bayeslora_pyro.isolation import evaluating
from bayeslora_pyro.passes import numbers

from .exact import rand
from .test_laplace import classifier, data, facts, moments
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
    for predictive, count in (("joint", 4000), ("weights", 2000)):
        drawn = linearised_batches(
            found.model,
            found.guide.factor_posteriors(),
            found.mean_adapter(),
            [test],
            count,
            0,
            predictive,
            lambda each, _: (each.logits,),
        )[0][1][0].detach()
        shift = (drawn - mean).mean(-1, keepdim=True)  # what normalising took away
        centred = torch.eye(3, dtype=torch.float64) - 1 / 3
        moved = drawn - mean - shift
        wanted = centred @ covariance @ centred
        error = (torch.einsum("snc,snd->ncd", moved, moved) / count - wanted).flatten(1).norm(dim=1)
        assert (error < 0.1 * wanted.flatten(1).norm(dim=1) + 1e-9).all(), predictive
        assert moved.mean(0).abs().max() < 5 * (wanted.diagonal(dim1=-2, dim2=-1).max() / count).sqrt()


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
    with pytest.raises(ValueError, match=r"predictive should be one of network, joint.*is 'bayes'"):
        posterior.predict(test, predictive="bayes")


class TestItIsAGuide:
    def test_it_starts_a_run_of_svi(self) -> None:
        found, batches = laplace_posterior(classifier(), data()), data()
        before = {name: value.clone() for name, value in found.guide.state_dict().items()}
        result = fit(
            found.model, found.guide, batches, FitConfig(num_steps=3, learning_rate=1e-3), progress=False
        )
        after = result.posterior.guide.state_dict()
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert {name.rpartition(".")[2] for name in moved} == {"loc", "log_precision"}
        assert math.isfinite(result.history[-1]["elbo"])

    def test_its_divergence_from_the_prior_is_in_closed_form(self) -> None:
        """At the precision of the prior, it is what the evidence charges for curvature and norm."""
        found = laplace_posterior(classifier(), data(), precision=0.3)
        log_p, log_q = found.log_weights(3000)
        closed = sum(
            torch.distributions.kl_divergence(
                found.guide.get_posterior(stack), found.model.prior_of(stack).latent_prior(stack)
            ).sum()
            for stack in found.stacks
        )
        ratio = log_q - log_p
        assert abs(ratio.mean() - closed) < 5 * ratio.std() / 3000**0.5

    def test_it_draws_what_it_scores_and_goes_to_arviz(self) -> None:
        found = laplace_posterior(classifier(), data())
        container = to_arviz(found, [tiny_batch(seed=7)], num_draws=30)
        assert {"A_2x16.W", "B_16x2.W"} <= set(container.posterior.data_vars)
        assert container.posterior["A_2x16.W"].shape == (1, 30, 4, 2, 16)

    @pytest.mark.parametrize("options", [{}, {"predictive": "probit"}, {"structure": "diagonal"}], ids=str)
    def test_in_arviz_weights_and_predictions_are_of_the_same_draws(self, options: dict[str, Any]) -> None:
        """Else importance weights, and so k-hat, would compare densities of one draw with the fit of another."""
        found, batches = laplace_posterior(classifier(), data(), **options), data()
        container = to_arviz(found, batches, fitted_to=batches, num_draws=30, seed=4)
        scores = found.log_likelihood(batches, 30, 4, predictive="weights")
        stats = container.sample_stats
        torch.testing.assert_close(torch.as_tensor(stats["fitted_log_likelihood"].values[0]), scores)
        weights = found.weights(30, 4)
        mean, test = found.mean_adapter(), batches[0]
        for draw in (0, 29):
            with evaluating(found.model.adapter.peft_model, found.model):
                moved = {k: mean[k] + 1e-5 * (weights[k][draw] - mean[k]) for k in mean}
                still, near = (
                    found.model.likelihood.scores(found.model.run_with(w, test), test) for w in (mean, moved)
                )
            linear = (still + (near - still) / 1e-5).log_softmax(-1)
            predicted = found.predict([test], 30, 4, predictive="weights").log_probs[draw]
            torch.testing.assert_close(predicted, linear, rtol=1e-3, atol=1e-3)

    def test_made_anew_it_is_isotropic(self) -> None:
        model = BayesianLora(tiny_bert(), "gaussian", num_data=15)
        for structure in ("kronecker", "diagonal"):
            guide = LaplaceGuide(model, structure=structure, scale=0.2)
            for stack in model.stacks:
                torch.testing.assert_close(
                    guide.get_posterior(stack).variance, torch.full((len(stack), *stack.shape), 0.04)
                )


class TestFolders:
    @pytest.mark.parametrize(
        "options",
        [{}, {"structure": "diagonal"}, {"modules": "last", "per": "role"}, {"max_dense": 4, "rank": 3}],
        ids=str,
    )
    def test_comes_back_exactly(self, options: dict[str, Any], tmp_path: Any) -> None:
        model = BayesianLora(tiny_bert(), "point", num_data=15)
        found, test = laplace_posterior(model, data(), **options), [tiny_batch(seed=7)]
        found.save(tmp_path / "run")
        back = Posterior.load(tmp_path / "run", tiny_bert().unload())
        assert torch.equal(back.predict(test, 9).log_probs, found.predict(test, 9).log_probs)
        assert back.metadata == found.metadata

    def test_another_lora_in_the_folder_is_refused(self, tmp_path: Any) -> None:
        """The curvature belongs to the MAP, whose file has its hash in the record."""
        for name, seed in (("one", 0), ("two", 1)):
            model = BayesianLora(tiny_bert(), "point", num_data=15)
            weights = {key: value + 0.1 * seed for key, value in model.lora_weights().items()}
            model = BayesianLora(tiny_bert(), "point", num_data=15, initial=weights)
            laplace_posterior(Posterior(model, DeltaGuide(model)), data()).save(tmp_path / name)
        file = "adapter_model.safetensors"
        (tmp_path / "one" / file).write_bytes((tmp_path / "two" / file).read_bytes())
        with pytest.raises(ValueError, match=file):
            Posterior.load(tmp_path / "one", tiny_bert().unload())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"structure": "kfac"}, "structure should be one of kronecker, diagonal, and is 'kfac'"),
        ({"precision": 0.0}, r"precision should be positive, and is 0\.0"),
        (
            {"precision": "best"},
            "precision should be 'evidence', 'tuning' or a positive number, and is 'best'",
        ),
        ({"precision": "tuning"}, "belong together: give both, or neither"),
        ({"per": "row"}, "per should be one of all, role, layer, factor, and is 'row'"),
        ({"fisher": 0}, "fisher should be 'exact' or at least 1 label for each item, and is 0"),
        ({"rank": 0}, "rank should be at least 1, and is 0"),
        ({"modules": "*.nothing"}, "fits no adapted module"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        laplace_posterior(classifier(), data(), **options)


def test_a_lora_that_is_not_trained_has_no_evidence() -> None:
    untrained = BayesianLora(tiny_bert(random_b=False), "point", num_data=15)
    for per in ("role", "factor"):
        with pytest.raises(ValueError, match="Train it first"):
            laplace_posterior(untrained, data(), per=per)
    assert facts(laplace_posterior(untrained, data(), precision=1.0))["effective_dimension"] > 0


def test_data_without_labels_or_of_texts_are_refused() -> None:
    bare = [{k: v for k, v in batch.items() if k != "labels"} for batch in data()]
    with pytest.raises(ValueError, match="batches without labels"):
        laplace_posterior(classifier(), bare)
    with pytest.raises(ValueError, match="loader yields no batch"):
        laplace_posterior(classifier(), [])
    texts = BayesianLora(tiny_llama(), "point", "next_token", num_data=5)
    with pytest.raises(
        NotImplementedError, match=r"NextToken does not say.*take Classification, Choice or Regression"
    ):
        laplace_posterior(texts, [tiny_batch("next_token")])


@pytest.mark.parametrize("per", ["all", "role", "layer", "factor"])
def test_the_precision_that_tuning_data_want(per: Any) -> None:
    model, tuning = classifier(), [tiny_batch(seed=20), tiny_batch(seed=21)]
    found = laplace_posterior(model, data(), precision="tuning", tuning=tuning, per=per)
    best = facts(found)["precision"][0]
    others = [
        _nll(laplace_posterior(model, data(), precision=p), tuning) for p in (1e-4, 1e-2, 1.0, 1e2, 1e6)
    ]
    assert _nll(found, tuning) <= min(others) + 1e-6
    assert max(others) > min(others) + 0.01
    assert {*facts(found)["precision"]} == {best}


def _nll(posterior: Posterior, batches: list[dict[str, Any]]) -> float:
    scores = posterior.log_likelihood(batches, 512)
    return float(-(scores.logsumexp(0) - math.log(512)).mean())


def test_numbers_are_what_a_prediction_keeps() -> None:
    found = laplace_posterior(classifier(), data())
    assert numbers(found.model.likelihood.of_scores(rand(2, 5, 3), {}), {})[0].shape == (2, 5, 3)
