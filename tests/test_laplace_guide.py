"""A Laplace approximation as a guide, its folder, its settings, and what it refuses."""

import math
from typing import Any

import pytest
import torch

from bayeslora_pyro import (
    BayesianLora,
    DeltaGuide,
    FitConfig,
    LaplaceGuide,
    Posterior,
    fit,
    laplace_posterior,
    to_arviz,
)
from bayeslora_pyro.isolation import evaluating

from .laplace_cases import classifier, data, facts
from .tiny import tiny_batch, tiny_bert, tiny_llama


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
        alone = to_arviz(found, batches, num_draws=30, seed=4).sample_stats["log_likelihood_sum"].values[0]
        torch.testing.assert_close(torch.as_tensor(alone), scores.double().sum(-1))
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

    def test_in_arviz_the_answers_between_two_classes_are_those_of_the_map(self) -> None:
        found = laplace_posterior(classifier(num_labels=2), data(num_labels=2), precision=0.05)
        test = [tiny_batch(seed=7, items=40, num_labels=2)]
        shown = to_arviz(found, test, num_draws=30).posterior_predictive["log_probs"].values[0]
        point = Posterior(found.model, DeltaGuide(found.model)).predict(test, 1).probs.argmax(-1)
        assert (torch.as_tensor(shown).exp().mean(0).argmax(-1) == point).all()
        drawn = found.predict(test, 30, predictive="weights").probs.argmax(-1)
        assert (drawn == point).all()  # draws of weights come in opposite pairs too

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
        ValueError, match=r"NextToken has no scores.*takes Classification, Choice or Regression"
    ):
        laplace_posterior(texts, [tiny_batch("next_token")])
    with pytest.raises(
        NotImplementedError, match=r"NextToken does not say .* in scores, of_scores and fisher_root"
    ):
        texts.likelihood.fisher_root(torch.zeros(1, 1))


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


@pytest.mark.parametrize("pattern", ["*", "*.attention.*", "*.query", "*.query.A", "B"])
def test_patterns_choose_modules_factors_or_roles(pattern: str) -> None:
    model = BayesianLora(tiny_bert(targets=["query"]), "point", num_data=15)
    found = laplace_posterior(model, data(), modules=pattern, precision=1.0)
    roles = {stack.role for stack in found.stacks if found.model.prior_of(stack).latent is not None}
    assert roles == ({"A"} if pattern.endswith(".A") else {"B"} if pattern == "B" else {"A", "B"})
