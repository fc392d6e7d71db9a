"""BaLoRA against its closed forms: the divergence, the noise of its two paths, what an item sees of another."""

import pyro
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from bayeslora_pyro.adapters import FreshNoise, KeyedNoise, LinearOperator, NoisyOperator
from bayeslora_pyro.elbo import PartsELBO
from bayeslora_pyro.guides import AmortisedNoiseGuide
from bayeslora_pyro.methods import METHODS
from bayeslora_pyro.models import BayesianLora, PointPrior, RelativeNoisePrior
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.relative_noise import RelativeNoise

from .exact import close, perturb, rand
from .tiny import tiny_batch, tiny_bert, tiny_llama

DRAWS = 40_000


@pytest.fixture(autouse=True)
def local_parameters():
    """Models and guides read their parameters from themselves, not from Pyro's store."""
    with pyro.settings.context(module_local_params=True):
        yield


def balora(language_model=None, likelihood="classification", *, features="embeddings", **options):
    """A model and its guide in float64, with some life in the network."""
    language_model = language_model or tiny_bert(dtype=torch.float64)
    prior = {"A": RelativeNoisePrior(**options), "B": PointPrior()}
    model = BayesianLora(language_model, prior, likelihood, num_data=20)
    guide = AmortisedNoiseGuide(model, hidden=8, features=features)
    return model, perturb(guide, scale=0.5)


def moments(scope, alphas=(0.3, 0.8), tokens=2, weight=None, inputs=None):
    """Draws of what a factor puts out for two rows, `(draw, row, token, out)`, its weight, and its inputs."""
    weight = rand(3, 4, seed=1) if weight is None else weight
    inputs = rand(2, tokens, 4, seed=2) if inputs is None else inputs
    pair = torch.tensor([[1.0, alpha] for alpha in alphas], dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiled = LinearOperator(weight).weight.expand(DRAWS, 3, 4)
        noise = FreshNoise(torch.arange(2), 2, DRAWS)
        operator = NoisyOperator(tiled, pair.repeat(DRAWS, 1), noise, "", scope)
        outputs = operator(inputs.repeat(DRAWS, 1, 1))
    return outputs.reshape(DRAWS, 2, tokens, 3), weight, inputs


def covariance(draws, others):
    draws, others = draws - draws.mean(0), others - others.mean(0)
    return draws.mT @ others / len(draws)


class TestDivergence:
    @pytest.mark.parametrize(("alpha", "rate"), [(0.2, 0.1), (0.05, 0.5), (3.0, 0.3)])
    @pytest.mark.parametrize("reduction", ["sum", "mean"])
    def test_is_that_of_the_entries(self, alpha, rate, reduction):
        weight, variance = rand(3, 4), rate / (1 - rate)
        entries = kl_divergence(
            Normal(weight, alpha**0.5 * weight.abs()),
            Normal(torch.zeros_like(weight), variance**0.5 * weight.abs()),
        )
        q, p = (torch.tensor([pair], dtype=torch.float64) for pair in ((1.0, alpha), (0.0, variance)))
        size = 12 if reduction == "sum" else 1
        ours = kl_divergence(RelativeNoise(q), RelativeNoise(p, size))
        close(ours, entries.sum() if reduction == "sum" else entries.mean(), 1e-10)
        close(ours, -RelativeNoise(p, size).log_prob(q))
        transcribed = 0.5 * (
            (1 + alpha) * (1 + rate) / rate - 1
        )  # a sign wrong, as in a draft that went round
        assert abs(float(entries.mean()) - transcribed) > 0.1

    @pytest.mark.parametrize("rate", [0.1, 0.5])
    def test_is_least_at_the_odds_of_the_rate(self, rate):
        variance = rate / (1 - rate)
        prior = RelativeNoise(torch.tensor([[0.0, variance]], dtype=torch.float64))

        def divergence(alpha):
            return kl_divergence(RelativeNoise(torch.stack([torch.ones_like(alpha), alpha])[None]), prior)

        least = torch.tensor(variance, dtype=torch.float64)
        close(divergence(least), 1 / (2 * variance))
        close(torch.func.grad(divergence)(least), 0.0)
        close(torch.func.grad(torch.func.grad(divergence))(least), 1 / (2 * variance**2))

    def test_the_aggregate_is_the_best_of_its_family(self):
        alphas = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
        pairs = torch.stack([torch.ones(3, dtype=torch.float64), alphas], -1)[:, None]
        ratio = alphas / alphas.mean()
        ours = kl_divergence(RelativeNoise(pairs), RelativeNoise(pairs, aggregate=True))
        close(ours, 0.5 * (ratio - 1 - ratio.log()))
        for factor in (0.9, 1.1):
            other = torch.tensor([[1.0, factor * alphas.mean()]], dtype=torch.float64)
            assert kl_divergence(RelativeNoise(pairs), RelativeNoise(other)).sum() > ours.sum()

    @pytest.mark.parametrize("reduction", ["sum", "mean"])
    def test_is_in_the_elbo_once_for_each_item(self, reduction):
        model, guide = balora(kl_reduction=reduction)
        batch = tiny_batch()
        parts = PartsELBO().parts(model, guide, batch)
        (stack,) = (stack for stack in model.stacks if stack.role == "A")
        assert list(parts.kl) == [f"{stack.name}.alpha"]
        alphas = guide.local_posteriors(batch)[stack.name].mean[..., 1]
        variance, size = 1 / 9, 32 if reduction == "sum" else 1
        each = 0.5 * ((1 + alphas) / variance - 1 - (alphas / variance).log()) * size
        close(parts.kl[f"{stack.name}.alpha"], 20 * each.sum(-1).mean())
        assert parts.values(20)["kl_alpha"] == pytest.approx(each.sum(-1).mean().item())
        factors = list(model.priors.parameters())
        assert torch.autograd.grad(sum(parts.kl.values()), factors, allow_unused=True) == (None,) * len(
            factors
        )


class TestNoise:
    @pytest.mark.parametrize("scope", ["token", "sequence", "weight"])
    def test_has_the_covariance_of_the_weights_at_each_token(self, scope):
        draws, weight, inputs = moments(scope)
        for row, alpha in enumerate((0.3, 0.8)):
            for token in range(2):
                x, z = inputs[row, token], draws[:, row, token]
                expected = (alpha * weight.square() @ x.square()).diag()
                torch.testing.assert_close(covariance(z, z), expected, rtol=0.03, atol=0.02 * expected.max())
                torch.testing.assert_close(z.mean(0), weight @ x, rtol=0, atol=0.05)

    @pytest.mark.parametrize(("scope", "shared"), [("token", 0.0), ("sequence", None), ("weight", 1.0)])
    def test_of_two_tokens_goes_together_as_the_scope_says(self, scope, shared):
        draws, weight, inputs = moments(scope)
        for row, alpha in enumerate((0.3, 0.8)):
            x, other = inputs[row]
            of_weights = alpha * weight.square() @ (x * other)
            if shared is None:  # one number for each rank, so wholly correlated
                sizes = [alpha * weight.square() @ each.square() for each in (x, other)]
                expected = (sizes[0] * sizes[1]).sqrt()
            else:
                expected = shared * of_weights
            scale = (alpha * weight.square() @ x.square()).max()
            found = covariance(draws[:, row, 0], draws[:, row, 1])
            torch.testing.assert_close(found, expected.diag(), rtol=0.03, atol=0.04 * float(scale))

    def test_of_two_items_is_independent(self):
        draws, *_ = moments("weight", alphas=(0.5, 0.5))
        assert covariance(draws[:, 0, 0], draws[:, 1, 0]).abs().max() < 0.05

    @pytest.mark.parametrize("scope", ["token", "sequence", "weight"])
    def test_none_is_the_factor_itself(self, scope):
        weight, inputs = rand(3, 4), rand(2, 5, 4)
        pair = torch.tensor([[1.0, 0.0]] * 2, dtype=torch.float64)
        operator = NoisyOperator(weight, pair, FreshNoise(torch.arange(2), 2), "", scope)
        close(operator(inputs), inputs @ weight.mT)

    @pytest.mark.parametrize("scope", ["token", "sequence", "weight"])
    def test_is_equivariant(self, scope):
        """Scaling A scales what it puts out, and permuting its ranks permutes it; turning the ranks changes the law."""
        weight, inputs = rand(3, 4), rand(2, 5, 4)
        pair = torch.tensor([[1.0, 0.4], [1.0, 0.9]], dtype=torch.float64)

        def outputs(factor):
            noise = KeyedNoise(0, [0], torch.arange(2))
            return NoisyOperator(factor, pair, noise, "", scope)(inputs)

        close(outputs(3 * weight), 3 * outputs(weight), 1e-9)
        close(
            NoisyOperator(
                weight, pair * torch.tensor([1.0, 4.0]), KeyedNoise(0, [0], torch.arange(2)), "", scope
            )(inputs)
            - inputs @ weight.mT,
            2 * (outputs(weight) - inputs @ weight.mT),
            1e-9,
        )
        swap = torch.tensor([2, 0, 1])
        variance = weight.square() @ inputs[0, 0].square()
        close((weight[swap]).square() @ inputs[0, 0].square(), variance[swap])
        turn = torch.linalg.qr(rand(3, 3, seed=5))[0]
        turned = turn.mT @ ((turn @ weight).square() @ inputs[0, 0].square()).diag() @ turn
        assert not torch.allclose(turned, variance.diag(), atol=1e-3)

    def test_is_drawn_once_for_activations_of_a_shape(self):
        pair = torch.tensor([[1.0, 0.4]] * 2, dtype=torch.float64)
        operator = NoisyOperator(rand(3, 4), pair, FreshNoise(torch.arange(2), 2), "")
        inputs = rand(2, 5, 4)
        assert torch.equal(operator(inputs), operator(inputs))
        other = NoisyOperator(rand(3, 4), pair, FreshNoise(torch.arange(2), 2), "")
        assert not torch.allclose(operator(inputs), other(inputs))

    def test_half_precision_does_not_underflow(self):
        weight, inputs = (1e-5 * rand(3, 4)).float(), (1e-2 * rand(2, 5, 4)).bfloat16()
        pair = torch.tensor([[1.0, 4.0]] * 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            operator = NoisyOperator(weight, pair, FreshNoise(torch.arange(2), 2), "", "weight")
            outputs = operator(inputs)
        assert outputs.dtype == torch.float32
        assert (outputs != inputs.float() @ weight.mT).all()

    def test_activations_that_mix_items_are_refused(self):
        operator = NoisyOperator(rand(3, 4), torch.ones(2, 2), FreshNoise(torch.arange(2), 2), "")
        with pytest.raises(ValueError, match="each of the 2 rows needs activations with one entry for each"):
            operator(rand(10, 4))


class TestItems:
    @pytest.mark.parametrize("scope", ["token", "sequence", "weight"])
    @pytest.mark.parametrize("features", ["embeddings", "backbone", "cls"])
    def test_see_the_same_in_any_batch(self, scope, features):
        """Neither the other items of a batch, nor their padding, nor how draws share passes changes a prediction."""
        posterior = Posterior(*balora(noise_scope=scope, features=features))
        batch = tiny_batch()
        whole = posterior.predict([batch], 3, seed=1).log_probs
        lengths = batch["attention_mask"].sum(1).tolist()
        single = [
            {name: v[n : n + 1, :length] if v.dim() == 2 else v[n : n + 1] for name, v in batch.items()}
            for n, length in enumerate(lengths)
        ]
        close(posterior.predict(single, 3, seed=1).log_probs, whole)
        close(posterior.predict([batch], 3, seed=1, memory_budget=1).log_probs, whole)
        close(posterior.predict([batch], 2, seed=1).log_probs, whole[:2])
        assert not torch.allclose(whole[0], whole[1])
        assert not torch.allclose(posterior.predict([batch], 3, seed=2).log_probs, whole)
        moved = posterior.predict(
            [single[1], single[0]], 3, seed=1
        ).log_probs  # noise goes by the place in the data
        assert not torch.allclose(moved[:, 1], whole[:, 0])

    def test_noise_that_goes_by_the_batch_would_be_caught(self, monkeypatch):
        posterior, batch = Posterior(*balora()), tiny_batch()
        draw = KeyedNoise._draw

        def by_batch(self, like, shapes, number, item, *key):
            return draw(self, like, shapes, number, item - self._items[0], *key)

        monkeypatch.setattr(KeyedNoise, "_draw", by_batch)
        single = [{name: value[n : n + 1] for name, value in batch.items()} for n in range(5)]
        ours, whole = (posterior.predict(each, 2).log_probs for each in (single, [batch]))
        close(ours[:, 0], whole[:, 0])
        assert not torch.allclose(ours, whole)

    @pytest.mark.parametrize("scope", ["token", "sequence", "weight"])
    def test_padding_on_the_left_is_padding(self, scope):
        model, guide = balora(tiny_llama(dtype=torch.float64, num_labels=3), noise_scope=scope)
        posterior, batch = Posterior(model, guide), tiny_batch()
        pad = batch["attention_mask"].shape[1] - batch["attention_mask"].sum(1)
        order = (torch.arange(batch["attention_mask"].shape[1]) - pad[:, None]) % batch[
            "attention_mask"
        ].shape[1]
        left = {n: v.gather(1, order) if v.dim() == 2 else v for n, v in batch.items()}
        place = (left["attention_mask"].cumsum(1) - 1).clamp(min=0)
        ours = posterior.predict([left | {"position_ids": place}], 2).log_probs
        close(ours, posterior.predict([batch], 2).log_probs, 1e-9)

    @pytest.mark.parametrize("scope", ["token", "sequence", "weight"])
    def test_have_one_alpha_for_all_their_options(self, scope):
        model, guide = balora(tiny_llama(dtype=torch.float64), "choice", noise_scope=scope)
        posterior, batch = Posterior(model, guide), tiny_batch("options")
        (stack,) = (stack for stack in model.stacks if stack.role == "A")
        assert guide.local_posteriors(batch)[stack.name].batch_shape == (5,)
        embedding = model.adapter.peft_model.get_input_embeddings()
        mask = batch["attention_mask"].double()
        of_rows = torch.einsum("nt,ntd->nd", mask, embedding(batch["input_ids"])) / mask.sum(1, keepdim=True)
        close(model.features(batch, "embeddings"), of_rows.reshape(5, 3, -1).mean(1))
        whole = posterior.predict([batch], 2).log_probs
        parts = [
            {n: v[3 * k : 3 * k + 3] if n != "labels" else v[k : k + 1] for n, v in batch.items()}
            | {"item": torch.zeros(3, dtype=torch.long)}
            for k in range(5)
        ]
        close(posterior.predict(parts, 2).log_probs, whole)

    def test_texts_do_not_tell_what_is_scored(self):
        model, _ = balora(tiny_llama(dtype=torch.float64), "next_token")
        batch = tiny_batch("next_token")
        before = model.features(batch, "embeddings")
        changed = batch["input_ids"].clone()
        changed[:, 1:] = (changed[:, 1:] + 1).clamp(max=31)
        close(model.features(batch | {"input_ids": changed}, "embeddings"), before)
        labels = batch["labels"].clone()
        labels[:, :3] = -100
        context = model.likelihood.context(batch | {"labels": labels})
        assert context.sum(1).tolist() == [3] * 5


class TestMean:
    def test_is_lora(self):
        """The saved adapter, its logits, and with no B the base model whatever the noise."""
        model, guide = balora()
        posterior, batch = Posterior(model, guide), tiny_batch()
        lora = METHODS["lora"](tiny_bert(dtype=torch.float64), "classification", 20)
        plain = Posterior(lora.model, lora.guide).predict([batch], 1).log_probs
        for name, weight in posterior.mean_adapter().items():
            assert torch.equal(weight, lora.model.lora_weights()[name])
        assert not torch.allclose(posterior.predict([batch], 1).log_probs, plain)
        with torch.no_grad():
            guide.alpha_net.layers[-1].bias.fill_(-torch.inf)
            guide.alpha_net.layers[-1].weight.zero_()
        close(posterior.predict([batch], 1).log_probs, plain)

    def test_without_b_there_is_no_noise(self):
        posterior = Posterior(*balora(tiny_bert(dtype=torch.float64, random_b=False)))
        batch = tiny_batch()
        with torch.no_grad():
            base = tiny_bert(dtype=torch.float64, random_b=False).unload()
            logits = base(batch["input_ids"], batch["attention_mask"]).logits
        for draw in posterior.predict([batch], 2, memory_budget=1).log_probs:
            assert torch.equal(draw, torch.distributions.Categorical(logits=logits).logits)

    def test_starts_at_the_rate_and_without_a_gradient_in_alpha(self):
        recipe = METHODS["balora"](tiny_bert(random_b=False), "classification", 20)
        for link in ("softplus", "exp"):
            guide = AmortisedNoiseGuide(recipe.model, link=link)
            for local in guide.local_posteriors(tiny_batch()).values():
                torch.testing.assert_close(local.mean[..., 1], torch.full((5, 4), 1 / 9))
        parts = PartsELBO().parts(recipe.model, guide, tiny_batch())
        bias = guide.alpha_net.layers[-1].bias
        (gradient,) = torch.autograd.grad(parts.loss() / 20, [bias])
        assert gradient.abs().max() < 1e-5
