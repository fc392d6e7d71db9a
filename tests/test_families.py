"""What the Gaussian families are: their covariances, where they start, and their posterior where it is Gaussian."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.distributions import MultivariateNormal

from bayeslora_pyro import Posterior
from bayeslora_pyro.diagnostics.arrays import pareto_khat
from bayeslora_pyro.elbo import ElboParts, PartsELBO
from bayeslora_pyro.guides import (
    FlowGuide,
    FullRankGuide,
    LowRankGuide,
    MatrixNormalGuide,
    MeanFieldGuide,
    MixtureGuide,
)
from bayeslora_pyro.guides.cholesky import CholeskyFactor
from bayeslora_pyro.guides.flow import BASES
from bayeslora_pyro.models import BayesianLora, GaussianPrior, Regression

from .exact import close, rand
from .noise import affine, drawn_from, expectation, num_draws
from .test_matrix_normal import tril
from .test_truth import NOISE, SCALE, LinearLanguageModel
from .tiny import tiny_bert

pytestmark = pytest.mark.usefixtures("local_parameters")

FAMILIES = {
    "mean_field": MeanFieldGuide,
    "matrix_normal": MatrixNormalGuide,
    "low_rank": LowRankGuide,
    "full_rank": FullRankGuide,
}


def covariance(own):
    """The covariance of the entries of one factor, from the parameters and the formula of the family."""
    if hasattr(own, "row"):
        row, col = own.row()[0], own.col()[0]
        return torch.kron(row @ row.T, col @ col.T)
    if hasattr(own, "cholesky"):
        return own.cholesky()[0] @ own.cholesky()[0].T
    scale = own.log_scale[0].exp().flatten().diag()
    loadings = own.loadings[0] if hasattr(own, "loadings") else torch.zeros(len(scale), 1).double()
    return scale @ (torch.eye(len(scale)).double() + loadings @ loadings.T) @ scale


def moved(guide):
    with torch.no_grad():
        for index, parameter in enumerate(guide.parameters()):
            parameter.add_(0.3 * rand(*parameter.shape, seed=index).to(parameter))
    return guide


@pytest.mark.parametrize("name", FAMILIES)
class TestFamilies:
    def test_draws_have_the_covariance_of_the_formula(self, name):
        model, _ = regression("neither")
        guide = moved(FAMILIES[name](model))
        centre, root = affine(lambda: guide()["A_2x3"])
        close(centre, guide.A_2x3.loc.flatten())
        close(root @ root.T, covariance(guide.A_2x3), 1e-9)

    def test_starts_with_the_scale_it_is_told(self, name):
        model = BayesianLora(tiny_bert(), "gaussian")
        guide = FAMILIES[name](model, scale=0.3)
        for stack in model.stacks:
            deviation = guide.get_base_dist(stack).stddev
            torch.testing.assert_close(deviation, torch.full_like(deviation, 0.3), rtol=0.2, atol=0)
            assert torch.equal(guide.get_base_dist(stack).mean, model.lora_weights()[stack.name])

    def test_a_trained_lora_is_the_centre(self, name):
        model = BayesianLora(tiny_bert(dtype=torch.float64), "inducing").double()
        guide = FAMILIES[name](model)
        guide.from_lora()
        for stack in model.stacks:
            centre = model.prior_of(stack).conditional(stack, guide.get_base_dist(stack).mean).mean
            close(centre, model.lora_weights()[stack.name], 1e-6)

    def test_scale(self, name):
        with pytest.raises(ValueError, match="scale should be positive, and is -1"):
            FAMILIES[name](BayesianLora(tiny_bert()), scale=-1.0)


class TestMixture:
    def test_starts_at_the_start_with_components_that_differ(self):
        model = BayesianLora(tiny_bert(), "gaussian")
        guide = MixtureGuide(model, components=3, spread=2.0)
        for stack in model.stacks:
            mixture = guide.get_base_dist(stack)
            close(mixture.mean, model.lora_weights()[stack.name], 1e-6)
            offsets = mixture.loc - mixture.mean.unsqueeze(1)
            assert 0.05 < offsets.std() < 0.15
            assert mixture.logits.shape == (len(stack), 3)

    def test_a_trained_lora_is_its_mean_and_its_components_stay_apart(self):
        model = BayesianLora(tiny_bert(dtype=torch.float64), "gaussian").double()
        guide = moved(MixtureGuide(model))
        before = {stack.name: guide.get_base_dist(stack).variance for stack in model.stacks}
        weights = {name: weight + 1 for name, weight in model.lora_weights().items()}
        guide.from_lora(weights)
        for stack in model.stacks:
            close(guide.get_base_dist(stack).mean, weights[stack.name])
            close(guide.get_base_dist(stack).variance, before[stack.name])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"components": 1}, "components should be at least 2, and is 1"),
            ({"spread": 0.0}, "spread should be positive, and is 0"),
        ],
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            MixtureGuide(BayesianLora(tiny_bert()), **arguments)


@pytest.mark.parametrize("prior", ["inducing", "gaussian"])
@pytest.mark.parametrize("base", BASES)
class TestFlowOnTop:
    def test_every_parameter_moves(self, base, prior):
        model = BayesianLora(tiny_bert(), prior)
        guide = moved(FlowGuide(model, base=base, transform="affine_coupling"))
        PartsELBO().parts(model.sample_weights, guide).loss().backward()
        assert all(parameter.grad.any() for parameter in guide.parameters())

    def test_density_is_that_of_the_base_less_the_log_det(self, base, prior):
        model = BayesianLora(tiny_bert(dtype=torch.float64), prior)
        guide = moved(
            FlowGuide(model, base=base, scale=0.5) if base != "delta" else FlowGuide(model, base=base)
        )
        for stack in model.stacks:
            start, flow = guide.get_base_dist(stack).sample(), guide.get_transform(stack)
            log_det = flow.log_abs_det_jacobian(start, flow(start)).sum(-1)
            wanted = guide.get_base_dist(stack).log_prob(start) - (0 if base == "delta" else log_det)
            close(guide.get_posterior(stack).log_prob(flow(start)), wanted, 1e-6)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_any_cholesky_factor_can_be_reached(size):
    target, factor = tril(3, size, seed=4), CholeskyFactor(3, size, 0.1, torch.zeros(1).double())
    scale = target.diagonal(dim1=-2, dim2=-1)
    with torch.no_grad():
        factor.log_scale.copy_(scale.log())
        if size > 1:
            rows, cols = torch.tril_indices(size, size, offset=-1)
            factor.lower.copy_((target / scale.unsqueeze(-1))[:, rows, cols])
    close(factor(), target)
    assert sum(parameter.numel() for parameter in factor.parameters()) == 3 * size * (size + 1) // 2


def test_full_rank_of_too_many_entries():
    with pytest.raises(
        ValueError, match=r"1,040 entries.*541,320 parameters for each of 4.*MatrixNormalGuide"
    ):
        FullRankGuide(BayesianLora(tiny_bert(rank=65), "gaussian"))


def test_rank():
    with pytest.raises(ValueError, match="rank should be at least 1, and is 0"):
        LowRankGuide(BayesianLora(tiny_bert()), rank=0)


# The rank of LoRA, and whether the inputs are orthogonal. With B of ones, y = (sum of the rows of A) x + noise.
CASES = {"columns": (1, False), "rows": (2, True), "neither": (2, False)}


def regression(case):
    """Linear regression through A, and B of ones: the posterior of A is Gaussian."""
    rank, orthogonal = CASES[case]
    inputs = 1.5 * torch.linalg.qr(rand(8, 3, seed=10))[0].contiguous() if orthogonal else rand(8, 3, seed=10)
    targets = inputs @ rand(3, seed=20) + NOISE * rand(8, seed=30)
    with torch.random.fork_rng():
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["layer"])
        peft_model = get_peft_model(LinearLanguageModel(3), config).double()
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            parameter.fill_(1.0 if "lora_B" in name else 0.0)
    prior = {"A": GaussianPrior(SCALE), "B": "point"}
    model = BayesianLora(peft_model, prior, Regression(scale=NOISE), num_data=8).double()
    return model, {"inputs_embeds": inputs, "labels": targets}


def truth(case):
    """The log evidence, and the moments of the posterior of A."""
    rank, (_, batch) = CASES[case][0], regression(case)
    inputs, targets = batch["inputs_embeds"], batch["labels"]
    design = torch.kron(torch.ones(1, rank).double(), inputs)
    noise = NOISE**2 * torch.eye(8, dtype=torch.float64)
    evidence = MultivariateNormal(torch.zeros(8).double(), SCALE**2 * design @ design.T + noise)
    precision = torch.eye(3 * rank).double() / SCALE**2 + design.T @ design / NOISE**2
    posterior = torch.linalg.inv(precision)
    return evidence.log_prob(targets), posterior @ design.T @ targets / NOISE**2, posterior


def fitted(family, case, **options):
    """The best guide of a family and its exact ELBO: the noise is integrated out, so nothing is random."""
    model, batch = regression(case)
    guide = family(model, scale=0.3, **options)
    optimizer = torch.optim.LBFGS(
        guide.parameters(), max_iter=60, tolerance_change=1e-7, line_search_fn="strong_wolfe"
    )
    points = num_draws(guide)

    def closure():
        optimizer.zero_grad()
        losses = []
        for unit in torch.eye(points, dtype=torch.float64):
            for sign in (1.0, -1.0):
                with drawn_from(sign * points**0.5 * unit):
                    loss = PartsELBO().differentiable_loss(model, guide, batch) / (2 * points)
                loss.backward()
                losses.append(loss.detach())
        return torch.stack(losses).sum()

    optimizer.step(closure)
    return guide, elbo(model, guide, batch)


def elbo(model, guide, batch):
    return -expectation(lambda: PartsELBO().differentiable_loss(model, guide, batch))


def check_exact(family, case, **options):
    guide, bound = fitted(family, case, **options)
    evidence, mean, posterior = truth(case)
    assert 0 <= evidence - bound < 1e-3
    centre, root = affine(lambda: next(iter(guide().values())))
    close(centre, mean, 1e-3)
    close(root @ root.T, posterior, 1e-3)


def khat(family, case):
    """The tail index of the importance weights of the fitted guide."""
    guide, _ = fitted(family, case)
    posterior, batch = Posterior(guide.model, guide), regression(case)[1]
    log_prior, log_guide = posterior.log_weights(400)
    log_likelihood = posterior.log_likelihood([batch], 400).sum(-1)
    return pareto_khat((log_prior + log_likelihood - log_guide).numpy())


class TestGaussianPosterior:
    def test_importance_weights_tell_the_families_apart(self):
        exact, independent = (khat(family, "columns") for family in (FullRankGuide, MeanFieldGuide))
        assert exact < 0.5
        assert exact < independent

    @pytest.mark.parametrize("case", CASES)
    def test_full_rank_is_exact(self, case):
        check_exact(FullRankGuide, case)

    @pytest.mark.parametrize("case", ["columns", "rows"])
    def test_matrix_normal_is_exact_where_the_covariance_is_a_kronecker_product(self, case):
        check_exact(MatrixNormalGuide, case)

    @pytest.mark.parametrize(("case", "rank"), [("columns", 2), ("rows", 3)])
    def test_low_rank_is_exact_where_its_rank_is_enough(self, case, rank):
        check_exact(LowRankGuide, case, rank=rank)

    @pytest.mark.parametrize("case", CASES)
    def test_mean_field_is_below_by_the_correlations(self, case):
        evidence, _, posterior = truth(case)
        gap = 0.5 * (torch.linalg.inv(posterior).diagonal().log().sum() + torch.logdet(posterior))
        assert gap > 0.05
        close(evidence - fitted(MeanFieldGuide, case)[1], gap, 1e-3)

    def test_matrix_normal_is_between_where_the_covariance_is_no_kronecker_product(self):
        (_, low), (_, middle) = (fitted(family, "neither") for family in (MeanFieldGuide, MatrixNormalGuide))
        assert low + 0.05 < middle < truth("neither")[0] - 0.01

    @pytest.mark.parametrize("family", [MatrixNormalGuide, FullRankGuide])
    def test_too_little_divergence_would_be_caught(self, family, monkeypatch):
        loss = ElboParts.loss
        monkeypatch.setattr(ElboParts, "loss", lambda self: loss(self, 0.99))
        with pytest.raises(AssertionError):
            check_exact(family, "columns")
