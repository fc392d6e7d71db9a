"""Fitting BaLoRA: what it is for, and how it is saved, resumed, recomputed, asked for and refused."""

import math
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from bayeslora_pyro import METHODS, Posterior, to_arviz
from bayeslora_pyro.adapters import NoisyOperator
from bayeslora_pyro.guides import AmortisedNoiseGuide
from bayeslora_pyro.isolation import local_rng
from bayeslora_pyro.models import BayesianLora, Choice, PointPrior, Regression, RelativeNoisePrior

from .cli_files import MOODS, bayeslora, bert, fitted, load_run
from .exact import close, perturb
from .test_adapters import checkpoint_gradients
from .test_resume import assert_equal_runs, interrupt_at
from .tiny import tiny_batch, tiny_bert, tiny_llama
from .tiny_vit import tiny_vit

__all__ = ["bert", "fitted"]

NUM_DATA, NUM_DRAWS = 48, 32


class Curve(nn.Module):
    """A frozen network of a number, whose last layer puts out the mean and the noise of another."""

    def __init__(self, width=32):
        super().__init__()
        self.embed, self.first, self.last = nn.Linear(1, width), nn.Linear(width, width), nn.Linear(width, 2)

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids):
        hidden = self.first(torch.tanh(self.embed(input_ids)))
        return SimpleNamespace(logits=self.last(torch.tanh(hidden)))


def noisy_curve(num_items, seed):
    """A sine whose noise grows thirtyfold from left to right."""
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(num_items, 1, generator=generator) - 2
    noise = 0.02 + 0.6 * torch.sigmoid(4 * x[:, 0])
    return {
        "input_ids": x,
        "labels": torch.sin(2 * x[:, 0]) + noise * torch.randn(num_items, generator=generator),
    }


def fit_curve(method, *, seed=1, num_steps=400, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peft_model = get_peft_model(Curve(), LoraConfig(r=4, lora_alpha=8, target_modules=["first", "last"]))
    recipe = METHODS[method](peft_model, Regression(noise="predicted"), NUM_DATA, **options)
    batch = noisy_curve(NUM_DATA, seed=seed)
    return recipe.fit(
        [batch], num_steps=num_steps, learning_rate=1e-2, weight_decay=0.0, progress=False
    ).posterior


def nll(posterior, num_draws):
    scores = posterior.log_likelihood([noisy_curve(300, seed=2)], num_draws)
    return -float((scores.logsumexp(0) - math.log(num_draws)).mean())


def alphas(posterior, batch):
    (local,) = posterior.guide.local_posteriors(batch).values()
    return local.mean[..., 1].detach()


class TestCurve:
    """The experiment that a reimplementation should pass."""

    def test_it_beats_lora_with_noise_that_depends_on_the_input(self):
        """On the mean of two data sets, after steps enough for LoRA to overfit one of them."""
        ours, theirs = 0.0, 0.0
        for seed in (1, 3):
            posterior = fit_curve("balora", seed=seed)
            of_items = alphas(posterior, noisy_curve(300, seed=2))
            assert (of_items.std(0) / of_items.mean(0)).max() > 0.05
            ours += nll(posterior, NUM_DRAWS) / 2
            theirs += nll(fit_curve("lora", seed=seed), 1) / 2
        assert ours < theirs - 0.1

    def test_the_sum_over_entries_pins_it_to_plain_dropout(self):
        posterior = fit_curve("balora", num_steps=200, prior=RelativeNoisePrior(kl_reduction="sum"))
        of_items = alphas(posterior, noisy_curve(300, seed=2))
        torch.testing.assert_close(of_items, torch.full_like(of_items, 1 / 9), rtol=0.02, atol=0)


def recipe_of(language_model=None, likelihood="classification", **options):
    return METHODS["balora"](language_model or tiny_bert(), likelihood, 12, seed=1, **options)


KINDS = {
    "classification": lambda: (tiny_bert(), "classification"),
    "regression": lambda: (tiny_bert(num_labels=1), "regression"),
    "choice": lambda: (tiny_llama(), Choice(label_tokens=(4, 9, 11))),
    "options": lambda: (tiny_llama(), Choice()),
    "next_token": lambda: (tiny_llama(), "next_token"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_data(kind):
    batches = [tiny_batch(kind, items=4, seed=seed) for seed in range(2)]
    result = recipe_of(*KINDS[kind]()).fit(batches, num_steps=3, progress=False)
    assert result.history[-1]["kl"] == result.history[-1]["kl_alpha"] > 0
    scores = result.posterior.log_likelihood(batches, 3)
    assert scores.shape == (3, 8)
    assert not torch.allclose(scores[0], scores[1])
    one_by_one = result.posterior.log_likelihood(batches, 3, memory_budget=1)
    torch.testing.assert_close(one_by_one, scores)


def test_images():
    generator = torch.Generator().manual_seed(0)
    batch = {
        "pixel_values": torch.randn(6, 3, 8, 8, generator=generator),
        "labels": torch.arange(6) % 3,
    }
    posterior = recipe_of(tiny_vit()).fit([batch], num_steps=3, progress=False).posterior
    whole = posterior.predict([batch], 2).log_probs
    parts = [{name: value[k : k + 3] for name, value in batch.items()} for k in (0, 3)]
    torch.testing.assert_close(posterior.predict(parts, 2).log_probs, whole)
    assert len(alphas(posterior, batch).unique(dim=0)) == 6


def fitted_parameters(scope, *, checkpointed):
    peft_model = tiny_bert()
    if checkpointed:
        checkpoint_gradients(peft_model, {"use_reentrant": False})
    recipe = recipe_of(peft_model, prior=RelativeNoisePrior(noise_scope=scope))
    recipe.fit([tiny_batch(items=6)], num_steps=2, progress=False)
    return [parameter.detach() for part in (recipe.model, recipe.guide) for parameter in part.parameters()]


@pytest.mark.parametrize("scope", ["token", "sequence", "weight"])
class TestGradientCheckpoints:
    def test_meet_the_same_noise(self, scope):
        pairs = zip(*(fitted_parameters(scope, checkpointed=each) for each in (True, False)), strict=True)
        for ours, wanted in pairs:
            torch.testing.assert_close(ours, wanted)

    def test_noise_drawn_anew_would_be_caught(self, scope, monkeypatch):
        wanted, seeds = fitted_parameters(scope, checkpointed=False), count()

        def anew(self, key, draw):
            with local_rng(next(seeds)):
                return draw()

        monkeypatch.setattr(NoisyOperator, "_once", anew)
        assert not all(map(torch.allclose, fitted_parameters(scope, checkpointed=True), wanted))


def test_a_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    batches = [tiny_batch(items=6, seed=seed) for seed in range(2)]
    options = {"num_steps": 4, "progress": False}
    wanted = recipe_of().fit(batches, **options)
    path = tmp_path / "fit.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        recipe_of().fit(batches, **options, checkpoint=path, callbacks=[interrupt_at(1)])
    assert_equal_runs(recipe_of().fit(batches, **options, checkpoint=path, resume=True), wanted)


@pytest.mark.parametrize("features", ["embeddings", "backbone", "cls"])
@pytest.mark.parametrize("link", ["softplus", "exp"])
def test_comes_back_exactly_and_serves_lora(features, link, tmp_path):
    prior = {"A": RelativeNoisePrior(0.2, "aggregate", "sum", "sequence"), "B": PointPrior()}
    model = BayesianLora(tiny_bert(), prior, num_data=12)
    posterior = Posterior(model, perturb(AmortisedNoiseGuide(model, features=features, link=link, hidden=8)))
    posterior.save(tmp_path)
    loaded, batch = Posterior.load(tmp_path, tiny_bert().unload()), tiny_batch()
    assert loaded.model.prior_of(model.stacks[0]).config() == prior["A"].config()
    assert loaded.guide.config() == posterior.guide.config()
    assert torch.equal(loaded.predict([batch], 3).log_probs, posterior.predict([batch], 3).log_probs)
    served = PeftModel.from_pretrained(tiny_bert().unload(), tmp_path).eval()
    lora = tiny_bert()
    with torch.no_grad():
        ours, theirs = (each(batch["input_ids"], batch["attention_mask"]).logits for each in (served, lora))
        merged = served.merge_and_unload()(batch["input_ids"], batch["attention_mask"]).logits
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(merged, theirs)


def test_the_aggregate_holds_alpha_to_nothing_but_itself():
    prior = {"A": RelativeNoisePrior(family="aggregate"), "B": PointPrior()}
    model = BayesianLora(tiny_bert(), prior, num_data=12)
    guide = AmortisedNoiseGuide(model)
    recipe = recipe_of(prior=RelativeNoisePrior(family="aggregate"))
    result = recipe.fit([tiny_batch(items=6)], num_steps=1, progress=False)
    close(torch.tensor(result.history[0]["kl"]), 0.0, 1e-5)  # all items start alike
    assert guide.local_posteriors(tiny_batch())


def test_the_prior_predicts_with_its_own_noise():
    posterior = Posterior(recipe_of().model, recipe_of().guide)
    prior = posterior.predict_prior([tiny_batch()], 4).log_probs
    assert not torch.allclose(prior[0], prior[1])
    assert not torch.allclose(prior, posterior.predict([tiny_batch()], 4).log_probs)


class TestWhatCannotBe:
    def test_draws_are_no_adapters(self, tmp_path):
        posterior = Posterior(recipe_of().model, recipe_of().guide)
        with pytest.raises(ValueError, match="draws needs factors that are the same for all items"):
            posterior.draws(2, tmp_path / "draws")
        assert not (tmp_path / "draws").exists()
        for name, weight in posterior.weights(2).items():
            assert torch.equal(weight[0], posterior.mean_adapter()[name])

    def test_there_is_no_linearised_prediction(self):
        posterior = Posterior(recipe_of().model, recipe_of().guide)
        with pytest.raises(
            ValueError, match="the noise of this one depends on the item: predict with 'network'"
        ):
            posterior.predict([tiny_batch()], 2, predictive="joint")

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"rate": 0.0}, "rate should lie between 0 and 1, and is 0.0"),
            ({"rate": 1.0}, "rate should lie between 0 and 1, and is 1.0"),
            ({"family": "tvamp"}, "family should be one of dropout, aggregate, and is 'tvamp'"),
            ({"kl_reduction": "max"}, "kl_reduction should be one of mean, sum, and is 'max'"),
            (
                {"noise_scope": "batch"},
                "noise_scope should be one of token, sequence, weight, and is 'batch'",
            ),
        ],
    )
    def test_of_a_prior(self, options, match):
        with pytest.raises(ValueError, match=match):
            RelativeNoisePrior(**options)

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"features": "tokens"}, "features should be one of embeddings, backbone, cls, and is 'tokens'"),
            ({"link": "relu"}, "link should be 'softplus' or 'exp', and is 'relu'"),
            ({"hidden": 0}, "hidden should be a whole number of at least 1, and is 0"),
        ],
    )
    def test_of_a_guide(self, options, match):
        with pytest.raises(ValueError, match=match):
            AmortisedNoiseGuide(recipe_of().model, **options)

    def test_a_model_without_embeddings(self, monkeypatch):
        monkeypatch.delattr(Curve, "get_input_embeddings")
        peft_model = get_peft_model(Curve(), LoraConfig(target_modules=["first"]))
        with pytest.raises(ValueError, match="Curve has none: take 'backbone'"):
            recipe_of(peft_model)


def test_arviz_has_its_history_and_its_predictions():
    batches = [tiny_batch(items=6, seed=seed) for seed in range(2)]
    posterior = recipe_of().fit(batches, num_steps=3, progress=False).posterior
    container = to_arviz(posterior, batches, num_draws=3)
    assert dict(container.posterior_predictive.sizes) == {"chain": 1, "draw": 3, "item": 12, "label": 3}
    assert "kl_alpha" in container.constant_data
    alpha = container.constant_data["alpha"]
    assert dict(alpha.sizes) == {"chain": 1, "item": 12, "factor": 8}
    known = alpha.sel(factor=[name for name in alpha.factor.values if name.startswith("A_")]).values[0]
    expected = torch.cat([alphas(posterior, batch) for batch in batches])
    torch.testing.assert_close(torch.tensor(known).float(), expected)
    assert int(alpha.isnull().sum()) == 12 * 4
    assert bool(container.sample_stats["log_guide"].isnull().all())


def test_the_command_line(fitted, bert, tmp_path, capsys):
    flags = "--prior.rate 0.3 --prior.noise-scope weight --guide.features backbone --guide.hidden 16 --num-steps 2"
    arguments = ["--model", bert, "--data", fitted / "reviews.csv", *MOODS, "--r", 2, *flags.split()]
    assert bayeslora("fit", *arguments, "--method", "balora", "--output", tmp_path / "run") == 0
    assert bayeslora("evaluate", tmp_path / "run") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert output.count("the ELBO, not tempered (KL weight 1)") == 2
    posterior = load_run(tmp_path / "run", bert)
    assert posterior.model.priors["A"].config() | {"rate": 0.3, "noise_scope": "weight"} == (
        posterior.model.priors["A"].config()
    )
    assert (posterior.guide.features, posterior.guide.hidden) == ("backbone", 16)
    assert bayeslora("report", tmp_path / "run", "--num-draws", 4) == 0
    assert "How noisy the factors are" in (tmp_path / "run" / "report.html").read_text()
    assert bayeslora("draws", tmp_path / "run") != 0
    assert "the noise of this posterior depends on the item" in " ".join(capsys.readouterr().err.split())
