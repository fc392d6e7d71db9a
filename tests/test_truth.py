"""Gaussian linear regression through one factor, where the evidence and the posterior are known."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from peft import LoraConfig, get_peft_model
from pyro.infer import MCMC, NUTS
from torch.distributions import MultivariateNormal

from bayeslora_pyro.distributions import InducedNormal
from bayeslora_pyro.elbo import ElboParts, PartsELBO
from bayeslora_pyro.guides import MeanFieldGuide
from bayeslora_pyro.models import BayesianLora, InducingPrior, Regression

from .dense import dense_side
from .exact import rand
from .linear import LinearLanguageModel
from .noise import affine, drawn_from, expectation

SCALE, NOISE = 0.8, 0.5  # of the weights and of the observations


def log_evidence(inputs, targets):
    """The exact log evidence of `y = W x + noise`, with independent entries of W; `targets` has shape `(n, d_o)`."""
    covariance = SCALE**2 * inputs @ inputs.T + NOISE**2 * torch.eye(len(inputs), dtype=torch.float64)
    return MultivariateNormal(torch.zeros(len(inputs)).double(), covariance).log_prob(targets.T).sum()


class TestFullCovariance:
    """A model made by hand, so that its guide can be the best one there is for any locations."""

    inputs, targets = rand(7, 3, seed=1), rand(7, 2, seed=2)

    def maps(self, p, q, nugget, identity=False):
        z_row, z_col = (torch.eye(2), torch.eye(3)) if identity else (rand(p, 2, seed=3), rand(q, 3, seed=4))
        d_row, d_col = (torch.full((size,), nugget, dtype=torch.float64) for size in (p, q))
        return {"z_row": z_row.double(), "d_row": d_row, "z_col": z_col.double(), "d_col": d_col}

    def lift(self, maps):
        """The matrix F from vec V to the mean of vec W."""
        (l_row, t_row, _), (l_col, t_col, _) = (
            dense_side(maps[f"z_{s}"], maps[f"d_{s}"]) for s in ("row", "col")
        )
        return SCALE * torch.kron(t_row @ l_row, t_col @ l_col)

    def best(self, maps):
        """Mean and covariance of the best guide, p(v) exp(E log p(y | W)), with the conditional of the prior."""
        precision = torch.kron(torch.eye(2).double(), self.inputs.T @ self.inputs) / NOISE**2
        lift, weighted = self.lift(maps), (self.targets.T @ self.inputs).flatten() / NOISE**2
        covariance = torch.linalg.inv(torch.eye(lift.shape[1]).double() + lift.T @ precision @ lift)
        return covariance @ lift.T @ weighted, covariance

    def elbo(self, maps, mean, covariance):
        p, q = len(maps["z_row"]), len(maps["z_col"])

        def sample(distribution):
            latent = pyro.sample("V", distribution).reshape(p, q)
            return pyro.sample("W", InducedNormal.from_locations(latent, **maps, scale=SCALE))

        def model():
            weights = sample(dist.MultivariateNormal(torch.zeros(p * q).double(), torch.eye(p * q).double()))
            pyro.sample("y", dist.Normal(self.inputs @ weights.T, NOISE).to_event(2), obs=self.targets)

        def guide():
            sample(dist.MultivariateNormal(mean, covariance))

        return -expectation(lambda: PartsELBO().differentiable_loss(model, guide))

    def collapsed_bound(self, maps):
        """The ELBO of the best guide in closed form: evidence under the mean map, less the variance left out."""
        lift = self.lift(maps)
        design = torch.kron(torch.eye(2).double(), self.inputs) @ lift
        noise = NOISE**2 * torch.eye(len(design), dtype=torch.float64)
        evidence = MultivariateNormal(torch.zeros(len(design)).double(), design @ design.T + noise)
        left_out = SCALE**2 * torch.eye(len(lift)).double() - lift @ lift.T
        information = torch.kron(torch.eye(2).double(), self.inputs.T @ self.inputs) / NOISE**2
        return evidence.log_prob(self.targets.T.flatten()) - (information @ left_out).trace() / 2

    @pytest.mark.parametrize(("p", "q"), [(1, 1), (1, 2), (2, 2), (2, 3), (3, 4)])
    @pytest.mark.parametrize("nugget", [0.01, 1.0])
    def test_best_guide_has_the_collapsed_bound(self, p, q, nugget):
        maps = self.maps(p, q, nugget)
        best = self.elbo(maps, *self.best(maps))
        torch.testing.assert_close(best, self.collapsed_bound(maps), rtol=0, atol=1e-8)
        assert best < log_evidence(self.inputs, self.targets)

    @pytest.mark.parametrize("seed", range(4))
    def test_any_other_guide_is_below_it(self, seed):
        maps = self.maps(2, 3, 0.1)
        mean, root = (
            self.best(maps)[0] + 0.1 * rand(6, seed=seed),
            0.3 * rand(6, 6, seed=seed) + 0.5 * torch.eye(6),
        )
        assert self.elbo(maps, mean, root @ root.T) < self.elbo(maps, *self.best(maps))

    def test_gap_closes_where_the_inducing_matrix_determines_the_weights(self):
        nuggets = torch.tensor([0.3, 0.1, 0.03, 0.01], dtype=torch.float64)
        gaps = []
        for nugget in nuggets.tolist():
            maps = self.maps(2, 3, nugget, identity=True)
            gaps.append(log_evidence(self.inputs, self.targets) - self.elbo(maps, *self.best(maps)))
        gaps = torch.stack(gaps)
        slopes = gaps.log().diff() / nuggets.log().diff()
        assert (gaps > 0).all()
        assert gaps[-1] < 0.05 < gaps[0]
        torch.testing.assert_close(slopes[-1], torch.tensor(2.0).double(), rtol=0, atol=0.01)


def regression(nugget, rows=1, orthogonal=True, seed=0):
    """The model of the library with B fixed at one, data, and the exact posterior of A where inputs are orthogonal."""
    inputs = rand(8, 3, seed=10 + seed)
    if orthogonal:
        inputs = torch.linalg.qr(inputs)[0] * torch.tensor([1.0, 1.5, 2.0])
    batch = {
        "inputs_embeds": inputs,
        "labels": inputs @ rand(3, seed=20 + seed) + NOISE * rand(8, seed=30 + seed),
    }
    with torch.random.fork_rng():
        peft_model = get_peft_model(
            LinearLanguageModel(3), LoraConfig(r=1, lora_alpha=1, target_modules=["layer"])
        )
    with torch.no_grad():
        for name, parameter in peft_model.double().named_parameters():
            parameter.fill_(1.0 if "lora_B" in name else 0.0)
    prior = {"A": InducingPrior(rows, 3, scale=SCALE, width_scaled=False, nugget=nugget), "B": "point"}
    model = BayesianLora(peft_model, prior, Regression(scale=NOISE), num_data=8).double()
    with torch.no_grad():
        own = model.prior_of(model.stacks[0]).A_1x3
        own.z_row.copy_(torch.eye(rows, 1))
        own.z_col.copy_(torch.eye(3))
    return model, batch


def exact_posterior(batch):
    """Mean and standard deviations of A, for orthogonal inputs."""
    information = batch["inputs_embeds"].square().sum(0) / NOISE**2
    variance = 1 / (SCALE**-2 + information)
    return variance * (batch["labels"] @ batch["inputs_embeds"]) / NOISE**2, variance.sqrt()


def best_mean_field(model, batch, nugget):
    """The guide whose entries are those of the best one, which is diagonal for orthogonal inputs."""
    guide = MeanFieldGuide(model, noise_scale=1 - 1e-12)
    lift = SCALE / (1 + nugget**2)
    variance = 1 / (1 + lift**2 * batch["inputs_embeds"].square().sum(0) / NOISE**2)
    with torch.no_grad():
        guide.A_1x3.loc.copy_(variance * lift * (batch["labels"] @ batch["inputs_embeds"]) / NOISE**2)
        guide.A_1x3.log_scale.copy_(variance.sqrt().log())
    return guide


def exact_elbo(model, guide, batch):
    return -expectation(lambda: PartsELBO().differentiable_loss(model, guide, batch))


def check_bound(model, guide, batch):
    gap = log_evidence(batch["inputs_embeds"], batch["labels"][:, None]) - exact_elbo(model, guide, batch)
    assert gap >= 0
    return gap


@pytest.mark.usefixtures("local_parameters")
class TestLibraryModel:
    @pytest.mark.parametrize("seed", range(5))
    def test_elbo_is_below_the_evidence_for_any_guide_and_locations(self, seed):
        model, batch = regression(0.2, rows=2, orthogonal=False, seed=seed)
        guide = MeanFieldGuide(model, noise_scale=0.6, scale=0.5)
        with torch.no_grad():
            for index, parameter in enumerate(
                [*guide.parameters(), *model.prior_of(model.stacks[0]).parameters()]
            ):
                parameter.add_(0.5 * rand(*parameter.shape, seed=100 * seed + index))
        check_bound(model, guide, batch)

    def test_gap_closes_where_the_guide_can_be_the_posterior(self):
        nuggets = torch.tensor([0.1, 0.03, 0.01, 0.003], dtype=torch.float64)
        gaps = []
        for nugget in nuggets.tolist():
            model, batch = regression(nugget)
            gaps.append(check_bound(model, best_mean_field(model, batch, nugget), batch))
        slopes = torch.stack(gaps).log().diff() / nuggets.log().diff()
        assert gaps[-1] < 1e-3
        torch.testing.assert_close(slopes[-1], torch.tensor(2.0).double(), rtol=0, atol=0.01)

    @pytest.mark.parametrize("fault", [0.9, 0.99])
    def test_too_little_divergence_would_be_caught(self, fault, monkeypatch):
        loss, (model, batch) = ElboParts.loss, regression(0.003)
        monkeypatch.setattr(ElboParts, "loss", lambda self: loss(self, fault))
        with pytest.raises(AssertionError):
            check_bound(model, best_mean_field(model, batch, 0.003), batch)

    def test_gradient_is_zero_at_the_best_guide(self):
        model, batch = regression(0.1)
        guide = best_mean_field(model, batch, 0.1)

        def gradient():
            parameters = [guide.A_1x3.loc, guide.A_1x3.log_scale]
            loss = PartsELBO().differentiable_loss(model, guide, batch)
            return torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)])

        torch.testing.assert_close(expectation(gradient), torch.zeros(6).double(), rtol=0, atol=1e-8)

    def test_fit_reaches_the_posterior(self):
        model, batch = regression(0.1)
        guide = trained(model, batch)
        (mean, deviation), (found_mean, found_deviation) = exact_posterior(batch), moments(guide)
        assert ((found_mean - mean).abs() / deviation).max() < 0.1
        assert (found_deviation / deviation).log().abs().max() < 0.2
        assert check_bound(model, guide, batch) < 0.3
        assert check_bound(model, MeanFieldGuide(model), batch) > 10


def trained(model, batch, num_steps=150):
    """Fits the guide alone, so that the prior and the noise stay what they are; each draw with its mirror image."""
    guide = MeanFieldGuide(model, noise_scale=0.5)
    optimizer = torch.optim.Adam(guide.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for step in range(num_steps):
        optimizer.zero_grad()
        for sign in (1, -1):
            with drawn_from(sign * rand(40, seed=step)):
                PartsELBO().differentiable_loss(model, guide, batch).backward()
        optimizer.step()
        schedule.step()
    return guide


def moments(guide):
    """The exact mean and standard deviations of A under the guide."""
    centre, root = affine(lambda: guide()["A_1x3"])
    return centre, root.square().sum(-1).sqrt()


def check_moments(drawn, mean, deviation):
    """Means within some four standard errors of 200 draws; deviations with the bias of one noise scale for all."""
    assert ((drawn.mean(0) - mean).abs() / deviation).max() < 0.3
    assert (drawn.std(0) / deviation).log().abs().max() < 0.3


@pytest.mark.fills_param_store
def test_nuts_agrees_with_the_guide():
    model, batch = regression(0.1)
    chain = MCMC(
        NUTS(model, full_mass=True, max_tree_depth=4), num_samples=200, warmup_steps=80, disable_progbar=True
    )
    chain.run(batch)
    drawn = chain.get_samples()["A_1x3.W"][:, 0, 0]
    check_moments(drawn, *exact_posterior(batch))
    check_moments(drawn, *moments(trained(model, batch)))
    for noise_scale in (0.1, 0.9):
        with pytest.raises(AssertionError):
            check_moments(drawn, *moments(MeanFieldGuide(model, scale=noise_scale, noise_scale=noise_scale)))
