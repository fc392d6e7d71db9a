"""Posteriors: draws that depend on seed and index alone, predictions, means."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayeslora_pyro.guides import GUIDES, DeltaGuide, FlowGuide, Guide, MeanFieldGuide
from bayeslora_pyro.models import BayesianLora, Choice, GaussianPrior, InducingPrior, PointPrior
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.prediction import Prediction, RegressionPrediction
from bayeslora_pyro.tiling import draws_per_pass

from .exact import perturb
from .test_adapters import two_adapters
from .tiny import VOCABULARY, tiny_batch, tiny_bert, tiny_llama


def perturbed(guide: Guide, seed: int = 0) -> Guide:
    """A guide as if it had been fitted: with parameters of its own, flows away from the identity."""
    return perturb(guide, 0.1, seed)


def posterior_of(
    guide: str = "flow", likelihood: Any = "classification", prior: Any = None, **options: Any
) -> Posterior:
    numbers = likelihood == "regression"
    peft_model = tiny_bert(num_labels=1) if numbers else tiny_bert()
    if likelihood == "next_token" or isinstance(likelihood, Choice):
        peft_model = tiny_llama()
    model = BayesianLora(peft_model, prior or InducingPrior(rows=3, cols=3, scale=1.0), likelihood, 20)
    return Posterior(model, perturbed(GUIDES[guide](model, noise_scale=0.5, **options)))


CASES: dict[str, tuple[Any, str]] = {
    "classification": ("classification", "classification"),
    "label-tokens": (Choice(label_tokens=(5, 6, 7)), "choice"),
    "options": (Choice(), "options"),
    "regression": ("regression", "regression"),
}


def numbers_of(prediction: Prediction | RegressionPrediction) -> Tensor:
    return prediction.log_probs if isinstance(prediction, Prediction) else prediction.loc


@pytest.mark.parametrize("case", CASES)
def test_tiles_equal_single_passes_whatever_the_budget(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    likelihood, kind = CASES[case]
    posterior = posterior_of(likelihood=likelihood)
    batches = [tiny_batch(kind, seed=0), tiny_batch(kind, seed=1, items=3)]
    ours, scores = [], []
    for size in (1, 2, 5):
        monkeypatch.setattr("bayeslora_pyro.passes.draws_per_pass", lambda *_, size=size, **__: size)
        ours.append(posterior.predict(batches, num_draws=5, seed=3))
        scores.append(posterior.log_likelihood(batches, 5, seed=3))
    for draw in range(5):
        weights = posterior.weights(1, seed=3, first=draw)
        one = {name: weight[0] for name, weight in weights.items()}
        with torch.no_grad():
            outputs = [posterior.model.run_with(one, batch) for batch in batches]
            single = [
                posterior.model.likelihood.distribution(output, batch)
                for output, batch in zip(outputs, batches, strict=True)
            ]
        wanted = torch.cat([q.mean if kind == "regression" else q.logits for q in single])
        for prediction in ours:
            torch.testing.assert_close(numbers_of(prediction)[draw], wanted, rtol=0, atol=2e-6)
    for score in scores:
        assert score.shape == (5, 8)
        torch.testing.assert_close(score, scores[0], rtol=0, atol=2e-6)


def test_text_is_scored_and_not_predicted() -> None:
    posterior = posterior_of(likelihood="next_token")
    batches = [tiny_batch("next_token", seed=0), tiny_batch("next_token", seed=1, items=3)]
    scores = [posterior.log_likelihood(batches, 3, memory_budget=budget) for budget in (1, 2**30)]
    for score in scores:
        torch.testing.assert_close(score, scores[0], rtol=1e-5, atol=1e-5)
    weights = {name: weight[0] for name, weight in posterior.weights(1).items()}
    labels = batches[0]["labels"]
    logits = posterior.model.run_with(weights, batches[0]).logits.detach()
    losses = nn.functional.cross_entropy(logits[:, :-1].mT, labels[:, 1:], reduction="none")
    torch.testing.assert_close(scores[0][0, :5], -losses.sum(-1), rtol=1e-5, atol=1e-5)
    training = posterior.model.adapter.peft_model.training
    with pytest.raises(ValueError, match="score it with log_likelihood") as _:
        posterior.predict(batches)
    assert torch.is_grad_enabled()  # although the error, with all its frames, is still held
    assert posterior.model.adapter.peft_model.training == training


@pytest.mark.parametrize("guide", GUIDES)
def test_first_draws_are_those_of_fewer_draws(guide: str) -> None:
    posterior = posterior_of(guide)
    batch = tiny_batch()
    many, few = posterior.predict([batch], 16, seed=7), posterior.predict([batch], 4, seed=7)
    torch.testing.assert_close(many.log_probs[:4], few.log_probs, rtol=0, atol=2e-6)
    for name, weight in posterior.weights(16, seed=7).items():
        assert torch.equal(weight[:4], posterior.weights(4, seed=7)[name])
        assert torch.equal(weight[2:4], posterior.weights(2, seed=7, first=2)[name])
        assert not torch.equal(weight[:4], posterior.weights(4, seed=8)[name])
        assert not torch.equal(weight[0], weight[1])
    for name, value in posterior.sample(16, seed=7).items():
        assert torch.equal(value[:4], posterior.sample(4, seed=7)[name])
        if name.endswith(".W"):
            assert torch.equal(value, posterior.weights(16, seed=7)[name.removesuffix(".W")])


def test_probabilities_are_averaged_in_log_space() -> None:
    extreme = torch.tensor([[[-1e4, 0.0]], [[-1e4 - 1, 0.0]]])  # float32 has no probability for these
    prediction = Prediction(extreme.log_softmax(-1))
    assert prediction.probs.isfinite().all()
    mean = (prediction.log_probs.double().exp()).mean(0)
    torch.testing.assert_close(prediction.probs.double(), mean, rtol=0, atol=1e-7)
    wrong = Prediction(extreme.log_softmax(-1), torch.tensor([0])).evaluate()
    assert wrong["nll"] == pytest.approx(1e4 - float(torch.tensor((1 + torch.e**-1) / 2).log()), rel=1e-6)


def test_uncertainty_splits_into_its_parts() -> None:
    prediction = posterior_of().predict([tiny_batch(items=9)], num_draws=6)
    torch.testing.assert_close(prediction.probs, prediction.log_probs.double().exp().mean(0))
    torch.testing.assert_close(prediction.probs.sum(-1), torch.ones(9).double())
    torch.testing.assert_close(
        prediction.entropy, -(prediction.probs * prediction.probs.log()).sum(-1), rtol=0, atol=1e-6
    )
    torch.testing.assert_close(prediction.entropy, prediction.aleatoric + prediction.epistemic)
    assert (prediction.epistemic >= 0).all()
    assert prediction.epistemic.max() > 1e-4


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_nothing_is_epistemic_without_variance(kind: str) -> None:
    model = BayesianLora(tiny_bert(num_labels=1 if kind == "regression" else 3), GaussianPrior(), kind, 20)
    prediction = Posterior(model, DeltaGuide(model)).predict([tiny_batch(kind)], num_draws=3)
    assert prediction.epistemic.abs().max() < 1e-6


def test_regression_is_the_mixture_of_its_draws() -> None:
    prediction = posterior_of(likelihood="regression").predict(
        [tiny_batch("regression", items=6)], num_draws=8
    )
    assert isinstance(prediction, RegressionPrediction)
    assert prediction.loc.shape == prediction.scale.shape == (8, 6)
    torch.testing.assert_close(prediction.mean, prediction.loc.mean(0))
    variance = (prediction.scale**2 + prediction.loc**2).mean(0) - prediction.loc.mean(0) ** 2
    torch.testing.assert_close(prediction.stddev**2, variance, rtol=1e-4, atol=1e-6)
    assert (prediction.epistemic > 0).all()
    numbers = prediction.evaluate()
    assert numbers["n"] == 6
    assert numbers["rmse"] == pytest.approx(
        (prediction.mean - prediction.labels).square().mean().sqrt().item(), rel=1e-5
    )


def test_items_may_have_different_numbers_of_options() -> None:
    whole = tiny_batch("options", items=2, num_options=4)
    keep = torch.tensor([0, 1, 2, 3, 4, 5])  # four options, then two
    ragged = {name: value[keep] for name, value in whole.items() if name != "labels"} | {
        "labels": torch.tensor([3, 1])
    }
    three = tiny_batch("options", items=2, num_options=3, seed=1)
    posterior = posterior_of(likelihood=Choice())
    prediction = posterior.predict([ragged, three], num_draws=4)
    assert prediction.log_probs.shape == (4, 4, 4)
    assert prediction.probs[1].tolist()[2:] == [0.0, 0.0]
    assert prediction.probs[2].tolist()[3:] == [0.0]
    torch.testing.assert_close(prediction.probs.sum(-1), torch.ones(4).double())
    for part in (prediction.entropy, prediction.aleatoric, prediction.epistemic):
        assert part.isfinite().all()
    assert all(value == value for value in prediction.evaluate().values())  # none is NaN
    alone = posterior.predict([three], num_draws=4)
    torch.testing.assert_close(prediction.log_probs[:, 2:, :3], alone.log_probs, rtol=0, atol=2e-6)
    scored = posterior.log_likelihood([ragged, three], 4)
    chosen = prediction.log_probs.gather(-1, prediction.labels.expand(4, -1).unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(scored, chosen, rtol=0, atol=2e-6)


def average_draw(posterior: Posterior, num_draws: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The mean over many draws of all factors, with its standard error."""
    means = {}
    for stack in posterior.stacks:
        prior, guide = posterior.model.prior_of(stack), posterior.guide
        if prior.latent is None:
            means[stack.name] = prior.sample_weights(stack), torch.zeros(())
            continue
        latent = guide.get_posterior(stack).sample((num_draws,))
        conditional = prior.conditional(stack, latent, 0.5)
        draws = latent if conditional is None else conditional.sample()
        means[stack.name] = draws.mean(0), draws.std(0) / num_draws**0.5
    return means


@pytest.mark.parametrize(
    "prior", [None, GaussianPrior(), {"A": GaussianPrior(0.2), "B": PointPrior()}], ids=repr
)
@pytest.mark.parametrize("guide", GUIDES)
def test_mean_adapter_is_the_mean_of_the_draws(guide: str, prior: Any) -> None:
    posterior = posterior_of(guide, prior=prior)
    mean = posterior.mean_adapter()
    for name, (average, error) in average_draw(posterior, 4000).items():
        assert mean[name].shape == average.shape
        assert ((mean[name] - average).abs() <= 5.5 * error + 1e-6).all()
    if guide != "flow":
        again = posterior.mean_adapter()
        assert all(torch.equal(mean[name], again[name]) for name in mean)


def test_planted_fault_a_draw_is_not_the_mean() -> None:
    posterior = posterior_of("mean_field")
    draw = posterior.weights(1, seed=5)
    averages = average_draw(posterior, 300)
    assert any(
        ((draw[n][0] - mean).abs() > 5.5 * error + 1e-6).any() for n, (mean, error) in averages.items()
    )


def test_two_models_on_one_peft_model_do_not_disturb_each_other() -> None:
    peft_model, batch = tiny_bert(), tiny_batch()
    posteriors = []
    for prior in (InducingPrior(rows=3, cols=3), GaussianPrior(0.1)):
        model = BayesianLora(peft_model, prior, num_data=20)
        posteriors.append(Posterior(model, perturbed(MeanFieldGuide(model), seed=len(posteriors))))
    alone = [posterior.predict([batch], 2).log_probs for posterior in posteriors]
    assert not torch.allclose(alone[0], alone[1], atol=1e-3)
    first, second = (posterior.weights(1) for posterior in posteriors)
    adapter, other = (posterior.model.adapter for posterior in posteriors)
    with adapter.bind({name: weight[0] for name, weight in first.items()}):
        other.run_with(second, batch)  # within the other's context
        within = peft_model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    torch.testing.assert_close(within.log_softmax(-1), alone[0][0], rtol=0, atol=2e-6)
    for posterior, wanted in zip(reversed(posteriors), reversed(alone), strict=True):
        assert torch.equal(posterior.predict([batch], 2).log_probs, wanted)


def test_an_inactive_adapter_has_a_posterior_of_its_own() -> None:
    model = BayesianLora(two_adapters(), num_data=20, adapter_name="second")
    prediction = Posterior(model, FlowGuide(model)).predict([tiny_batch()], 2)
    assert prediction.log_probs.shape == (2, 5, 3)
    assert model.adapter.peft_model.active_adapters == ["default"]


def test_batches_without_labels_predict_and_do_not_score() -> None:
    batch = {name: value for name, value in tiny_batch().items() if name != "labels"}
    posterior = posterior_of("mean_field")
    assert posterior.predict([batch, tiny_batch()], 2).labels is None
    with pytest.raises(ValueError, match="no labels to evaluate"):
        posterior.predict([batch], 2).evaluate()
    with pytest.raises(ValueError, match="batches have no labels"):
        posterior.log_likelihood([batch], 2)


def test_nothing_to_do_is_refused() -> None:
    posterior = posterior_of("mean_field")
    for count in (0, -1):
        for draw in (posterior.sample, posterior.weights, posterior.log_weights, posterior.sample_prior):
            with pytest.raises(ValueError, match=f"num_draws should be at least 1, and is {count}"):
                draw(count)
    with pytest.raises(ValueError, match="batches is empty"):
        posterior.predict([], 2)


def test_log_weights_are_those_of_the_draws() -> None:
    posterior = posterior_of("mean_field", prior=GaussianPrior(0.7))
    draws = posterior.weights(3)
    log_p, log_q = posterior.log_weights(3)
    locs = {
        name.removesuffix(".loc"): p for name, p in posterior.guide.named_parameters() if name.endswith("loc")
    }
    scales = {
        n.removesuffix(".log_scale"): p.exp() for n, p in posterior.guide.named_parameters() if "scale" in n
    }
    normal = torch.distributions.Normal
    wanted_p = sum(normal(0.0, 0.7).log_prob(w).flatten(1).sum(-1) for w in draws.values())
    wanted_q = sum(normal(locs[n], scales[n]).log_prob(w).flatten(1).sum(-1) for n, w in draws.items())
    torch.testing.assert_close(log_p, torch.as_tensor(wanted_p).detach().double(), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(log_q, torch.as_tensor(wanted_q).detach().double(), rtol=1e-5, atol=1e-3)


def test_a_budget_decides_how_many_draws_share_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    posterior, sizes = posterior_of("mean_field"), []
    run_with = posterior.model.run_with
    monkeypatch.setattr(
        posterior.model,
        "run_with",
        lambda w, batch, **_: (sizes.append(len(w["A_2x16"])), run_with(w, batch))[1],
    )
    posterior.predict([tiny_batch()], 5, memory_budget=1)
    posterior.predict([tiny_batch()], 5, memory_budget=2**30)
    assert sizes == [1, 1, 1, 1, 1, 5]


def test_budget_counts_the_logits_of_a_vocabulary() -> None:
    batch, budget = tiny_batch("next_token"), 2**20
    decoder, classifier = tiny_llama(), tiny_llama(num_labels=3)
    assert draws_per_pass(decoder, batch, budget) < draws_per_pass(classifier, batch, budget)
    assert draws_per_pass(decoder, batch, budget, num_logits=1) > draws_per_pass(decoder, batch, budget)
    assert draws_per_pass(decoder, batch, budget) <= budget / (4 * batch["input_ids"].numel() * VOCABULARY)
    assert draws_per_pass(decoder, batch, 0) == 1
    image = {"labels": torch.zeros(2), "pixel_values": torch.zeros(2, 3, 32, 32)}
    assert draws_per_pass(nn.Linear(2, 2), image, 2**30) >= 1


@pytest.mark.parametrize("prior", ["gaussian", "inducing", "point"])
def test_the_mean_is_no_live_parameter(prior):
    model = BayesianLora(tiny_bert(), prior)
    posterior = Posterior(model, MeanFieldGuide(model))
    mean = posterior.mean_adapter()
    assert not any(weight.requires_grad for weight in mean.values())
    for weight in mean.values():
        weight.zero_()
    assert all(weight.any() for weight in posterior.mean_adapter().values())
