"""The ELBO: its parts, its divergences, and its scaling to the data set."""

import math

import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions.torch_transform import TransformModule
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import constraints, kl_divergence

from bayeslora_pyro import elbo as elbo_module
from bayeslora_pyro.elbo import ElboParts, PartsELBO
from bayeslora_pyro.guides import GUIDES, FlowGuide, MeanFieldGuide
from bayeslora_pyro.models import BayesianLora, Choice, InducingPrior, NextToken
from bayeslora_pyro.transforms import StackedTransform
from bayeslora_pyro.vec_normal import VecNormal

from .exact import close, perturb
from .noise import drawn_from, expectation
from .tiny import tiny_batch, tiny_bert, tiny_llama

pytestmark = pytest.mark.usefixtures("local_parameters")

PRIORS = {
    "inducing": lambda: InducingPrior(2, 3, nugget=0.1),
    "gaussian": lambda: "gaussian",
    "point": lambda: "point",
    "one for each role": lambda: {"A": InducingPrior(1, 2, nugget=0.1), "B": "point"},
}


def make(prior, guide, targets=("query", "value"), **options):
    peft_model = tiny_bert(hidden=4, num_layers=1, targets=targets, dtype=torch.float64)
    model = BayesianLora(peft_model, PRIORS[prior](), num_data=20)
    guide = GUIDES[guide](model, **options)
    return model, perturb(guide, 0.2, seed=3)


def latent_kl(model, guide, estimator=None):
    """The exact mean of the divergence of all latent sites, for Gaussian guides."""
    estimator = estimator or PartsELBO()
    return expectation(lambda: estimator.differentiable_loss(model.sample_weights, guide))


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("prior", PRIORS)
class TestEveryPair:
    def test_parts_add_up_to_the_loss_of_pyro(self, prior, guide):
        model, guide = make(prior, guide)
        losses, gradients, parameters = [], [], [*model.parameters(), *guide.parameters()]
        for loss in (PartsELBO().differentiable_loss, TraceMeanField_ELBO().differentiable_loss):
            torch.manual_seed(1)
            losses.append(loss(model, guide, tiny_batch()))
            gradients.append(torch.autograd.grad(losses[-1], parameters, allow_unused=True))
        close(losses[0], losses[1].detach())
        for ours, theirs in zip(*gradients, strict=True):
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)

    def test_names_of_the_parts(self, prior, guide):
        model, guide = make(prior, guide)
        parts = PartsELBO().parts(model, guide, tiny_batch())
        assert parts.log_likelihood.keys() == {"y"}
        trace = poutine.trace(model.sample_weights).get_trace()
        assert parts.kl.keys() == {name for name in trace.stochastic_nodes if "." in name}
        assert all(value.dim() == 0 for value in (parts.kl | parts.log_likelihood).values())

    def test_every_parameter_moves(self, prior, guide):
        model, guide = make(prior, guide)
        PartsELBO().parts(model, guide, tiny_batch()).loss().backward()
        for name, parameter in [*model.named_parameters(), *guide.named_parameters()]:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name


GAUSSIAN = [
    (prior, guide)
    for prior in ("inducing", "gaussian", "one for each role")
    for guide in ("delta", "mean_field", "matrix_normal", "low_rank", "full_rank")
]


@pytest.mark.parametrize(("prior", "guide"), GAUSSIAN)
class TestDivergence:
    def test_closed_form_is_the_mean_of_the_log_ratio(self, prior, guide):
        model, guide = make(prior, guide, targets=["query"])
        close(latent_kl(model, guide), latent_kl(model, guide, Trace_ELBO()))

    def test_the_other_way_round_would_be_caught(self, prior, guide, monkeypatch):
        model, guide = make(prior, guide, targets=["query"])
        truth = latent_kl(model, guide, Trace_ELBO())
        monkeypatch.setattr(elbo_module, "kl_divergence", reversed_kl)
        with pytest.raises(AssertionError):
            close(latent_kl(model, guide), truth)


def reversed_kl(q, p):
    if isinstance(q, dist.Delta | VecNormal):  # which have no reverse
        return -kl_divergence(q, p)
    return kl_divergence(p, q)


def test_divergence_of_the_weights_is_that_of_the_paper():
    model, guide = make("inducing", "mean_field")
    parts = PartsELBO().parts(model.sample_weights, guide)
    for stack in model.stacks:
        noise_scale = guide.noise_scale(stack)
        d = math.prod(stack.shape)
        close(
            parts.kl[f"{stack.name}.W"], (d * (noise_scale**2 / 2 - noise_scale.log() - 0.5)).sum().detach()
        )


class Affine(TransformModule):
    """An affine map per column, whose divergence is known."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True
    sign = 1.0

    def __init__(self, dim):
        super().__init__(cache_size=1)
        self.shift = torch.nn.Parameter(torch.linspace(-1, 1, dim).double())
        self.log_scale = torch.nn.Parameter(torch.linspace(0.5, -1, dim).double())

    def _call(self, x):
        return x * self.log_scale.exp() + self.shift

    def _inverse(self, y):
        return (y - self.shift) / self.log_scale.exp()

    def log_abs_det_jacobian(self, x, y):
        return self.sign * self.log_scale.sum(-1) + torch.zeros_like(x[..., 0])


def flow_kl_and_truth(transform):
    """The mean of the one-draw estimate of a flow, and the closed form for an affine one."""
    peft_model = tiny_bert(hidden=4, num_layers=1, targets=["query"], dtype=torch.float64)
    model = BayesianLora(peft_model, PRIORS["inducing"](), num_data=20)
    guide = FlowGuide(model, transform=transform, scale=0.4)
    estimate, truth = latent_kl(model, guide), 0.0
    for stack in model.stacks:
        base, flow = guide.get_base_dist(stack).base_dist, guide.get_transform(stack)
        centre, slope = flow(base.loc), flow(base.loc + 1) - flow(base.loc)
        pushed = dist.Normal(centre, slope * base.scale)
        truth = truth + kl_divergence(pushed, dist.Normal(torch.zeros_like(centre), 1.0)).sum()
        d, noise_scale = math.prod(stack.shape), guide.noise_scale(stack)
        truth = truth + (d * (noise_scale**2 / 2 - noise_scale.log() - 0.5)).sum()
    return estimate, truth.detach()


class TestFlow:
    def test_at_the_identity_it_is_the_base(self):
        close(*flow_kl_and_truth("affine_autoregressive"), 1e-8)

    def test_affine_flow(self):
        close(*flow_kl_and_truth(Affine))

    @pytest.mark.parametrize("sign", [-1.0, 0.0, 0.5])
    def test_log_det_of_another_sign_would_be_caught(self, sign, monkeypatch):
        monkeypatch.setattr(Affine, "sign", sign)
        with pytest.raises(AssertionError):
            close(*flow_kl_and_truth(Affine))

    def test_log_prob_is_that_of_the_base_less_the_log_det(self):
        model, guide = make("inducing", "flow", depth=2)
        for stack in model.stacks:
            posterior, base, flow = (
                guide.get_posterior(stack),
                guide.get_base_dist(stack),
                guide.get_transform(stack),
            )
            start = base.rsample()
            value = flow(start).detach()
            size = start[0].numel()
            jacobian = torch.autograd.functional.jacobian(flow, start)
            jacobian = (
                jacobian.reshape(len(stack), size, len(stack), size).diagonal(dim1=0, dim2=2).movedim(-1, 0)
            )
            truth = base.log_prob(start) - torch.linalg.slogdet(jacobian)[1]
            close(posterior.log_prob(value), truth.detach())
            close(posterior.log_prob(value.clone()), truth.detach())  # by the inverse

    def test_estimate_uses_the_draw_of_the_forward_pass(self, monkeypatch):
        model, guide = make("inducing", "flow")
        passes, run = [], StackedTransform._run
        monkeypatch.setattr(
            StackedTransform, "_run", lambda self, *args, **kw: passes.append(kw) or run(self, *args, **kw)
        )
        PartsELBO().parts(model.sample_weights, guide)
        assert passes == [{"inverse": False}] * 2  # one for each stack, and no inverse


LIKELIHOODS = {
    "classification": ("classification", tiny_bert, "classification", "input_ids"),
    "regression": (
        "regression",
        lambda **options: tiny_bert(num_labels=1, **options),
        "regression",
        "input_ids",
    ),
    "label tokens": (lambda: Choice((5, 7, 9)), tiny_llama, "choice", "input_ids"),
    "options": (Choice, tiny_llama, "options", "item"),
    "next token": (NextToken, tiny_llama, "next_token", "input_ids"),
}
ITEMS = 7


def epoch(name, batch_size, num_data=ITEMS):
    """The sum of loss times batch size over an epoch, in nats per item of the data set, with one and the same draw."""
    likelihood, family, kind, _ = LIKELIHOODS[name]
    peft_model = family(hidden=8, num_layers=1, dtype=torch.float64)
    likelihood = likelihood if isinstance(likelihood, str) else likelihood()
    model = BayesianLora(peft_model, InducingPrior(2, 3), likelihood, num_data).double()
    guide, data, total = MeanFieldGuide(model), tiny_batch(kind, items=ITEMS), 0.0
    for start in range(0, ITEMS, batch_size):
        batch = select(data, range(start, min(start + batch_size, ITEMS)))
        torch.manual_seed(2)
        parts = PartsELBO().parts(model, guide, batch)
        total = total + parts.loss() / num_data * model.likelihood.num_items(batch)
    return total, parts, model, guide, data


def select(data, items):
    """Takes some items of a batch."""
    items = torch.tensor(list(items))
    rows = torch.isin(data["item"], items) if "item" in data else items
    chosen = {name: value[items if name == "labels" else rows] for name, value in data.items()}
    return chosen | ({"item": chosen["item"] - items[0]} if "item" in data else {})


def check_epoch(name, batch_size, **options):
    total, parts, model, guide, data = epoch(name, batch_size, **options)
    torch.manual_seed(2)
    weights = guide()
    distribution = model.likelihood.distribution(model.run_with(weights, data), data)
    log_likelihood = distribution.log_prob(model.likelihood.observed(data)).sum()
    close(total, (sum(parts.kl.values()) - log_likelihood).detach())


@pytest.mark.parametrize("name", LIKELIHOODS)
class TestScaling:
    @pytest.mark.parametrize("batch_size", [1, 2, 3, ITEMS])
    def test_an_epoch_is_one_elbo(self, name, batch_size):
        check_epoch(name, batch_size)

    def test_unscaled_likelihood_would_be_caught(self, name, monkeypatch):
        monkeypatch.setattr(elbo_module, "scale_and_mask", lambda value, scale, mask: value)
        with pytest.raises(AssertionError):
            check_epoch(name, 2)

    def test_divergence_for_each_batch_would_be_caught(self, name, monkeypatch):
        loss = ElboParts.loss
        monkeypatch.setattr(ElboParts, "loss", lambda self: loss(self, kl_weight=2.0))
        with pytest.raises(AssertionError):
            check_epoch(name, 2)


class TestParts:
    parts = ElboParts(
        {"y": torch.tensor(-3.0)},
        {"A.V": torch.tensor(1.0), "A.W": torch.tensor(2.0), "B.V": torch.tensor(4.0)},
    )

    @pytest.mark.parametrize(("kl_weight", "loss"), [(1.0, 10.0), (0.1, 3.7), (0.0, 3.0)])
    def test_weight_tempers_the_divergence_only(self, kl_weight, loss):
        assert self.parts.loss(kl_weight).item() == pytest.approx(loss)

    def test_values_are_never_tempered(self):
        values = self.parts.values(num_data=2)
        assert values == {"elbo": -5.0, "expected_log_likelihood": -1.5, "kl": 3.5, "kl_V": 2.5, "kl_W": 1.0}

    @pytest.mark.parametrize("broken", ["A.W", "B.V", "y", None])
    def test_first_broken(self, broken):
        bad = {broken: torch.tensor(torch.nan)}
        parts = ElboParts(
            self.parts.log_likelihood | (bad if broken == "y" else {}),
            self.parts.kl | (bad if broken in self.parts.kl else {}),
        )
        assert parts.first_broken() == broken

    def test_nothing_random(self):
        assert ElboParts({"y": torch.tensor(-3.0)}, {}).loss().item() == 3


def test_same_noise_same_elbo():
    model, guide = make("inducing", "mean_field")
    noise = torch.randn(500, dtype=torch.float64)
    losses = []
    for _ in range(2):
        with drawn_from(noise):
            losses.append(PartsELBO().differentiable_loss(model, guide, tiny_batch()).item())
    assert losses[0] == losses[1]
