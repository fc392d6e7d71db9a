"""Shares of the predictive variance, against linear programs whose shares are known."""

from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from bayeslora_pyro import BayesianLora, InducingPrior, MeanFieldGuide, PointPrior, Posterior
from bayeslora_pyro.diagnostics import variance_shares
from bayeslora_pyro.diagnostics.variance import shares_of
from bayeslora_pyro.isolation import private_pyro

from .noise import affine
from .tiny import tiny_batch, tiny_bert

SOURCES = {"inducing": ["u"], "conditional": ["w"], "head": ["h"]}


def linear(held, seed):
    """u ~ N(0, 1), w | u ~ N(u, 2^2), h ~ N(0, 3^2); f = w + h, whose variance is 1 + 4 + 9."""
    noise = torch.randn(3, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    u = held.get("u", noise[0])
    w = held.get("w", u + 2 * noise[1])
    h = held.get("h", 3 * noise[2])
    return {"u": u, "w": w, "h": h}, w + h


def test_shares_of_a_linear_program() -> None:
    found = shares_of(linear, SOURCES, 300)
    assert found.total == pytest.approx(14, rel=0.05)
    for name, part in {"inducing": 1, "conditional": 4, "head": 9}.items():
        assert found.shares[name] == pytest.approx(part / 14, abs=4 * found.standard_errors[name])
        assert found.standard_errors[name] < 0.02
    assert sum(found.shares.values()) == pytest.approx(1)
    assert str(found).startswith("variance 1")


def test_planted_fault_a_source_that_is_not_held() -> None:
    found = shares_of(
        lambda held, seed: linear({n: v for n, v in held.items() if n != "u"}, seed), SOURCES, 300
    )
    assert abs(found.shares["inducing"] - 1 / 14) > 4 * found.standard_errors["inducing"]


class Linear(nn.Module):
    """A base model that is one linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(6, 2, bias=False)

    def forward(self, features):
        return SimpleNamespace(logits=self.map(features))


def linear_posterior(noise_scale: float = 0.8) -> Posterior:
    """A random, B a point: logits are linear in the noise."""
    torch.manual_seed(0)
    base = get_peft_model(Linear(), LoraConfig(r=2, target_modules=["map"], init_lora_weights=False)).double()
    prior = {"A": InducingPrior(rows=2, cols=3, nugget=0.3), "B": PointPrior()}
    model = BayesianLora(base, prior, "classification", num_data=4)
    return Posterior(model, MeanFieldGuide(model, scale=0.7, noise_scale=noise_scale))


def test_shares_of_a_posterior_are_those_of_its_covariance() -> None:
    posterior, features = linear_posterior(), torch.randn(4, 6, dtype=torch.float64)
    model = posterior.model

    def outputs():
        weights = posterior.guide()
        weights["B_2x2"] = model.prior_of(model.stacks[1]).sample_weights(model.stacks[1])
        logits = model.run_with(weights, {"features": features}).logits
        return logits - logits.mean(-1, keepdim=True)

    with private_pyro():
        _, root = affine(outputs)  # the noise of V comes first, that of W | V after it
    inducing, conditional = (float(part.square().sum()) for part in (root[:, :6], root[:, 6:]))
    found = variance_shares(posterior, [{"features": features[:3]}, {"features": features[3:]}], 80)
    assert set(found.shares) == {"inducing", "conditional"}
    assert found.total == pytest.approx((inducing + conditional) / 8, rel=0.25)
    expected = inducing / (inducing + conditional)
    assert 0.05 < expected < 0.95
    assert found.shares["inducing"] == pytest.approx(expected, abs=4 * found.standard_errors["inducing"])
    assert found.standard_errors["inducing"] < 0.08
    swapped = linear_posterior(noise_scale=0.2)  # planted: another posterior's shares
    assert variance_shares(swapped, [{"features": features}], 30).shares["inducing"] > expected + 0.1


@pytest.mark.parametrize("prior", ["inducing", "gaussian"])
def test_a_language_model(prior, untouched_rng) -> None:
    model = BayesianLora(tiny_bert(num_layers=1), prior, num_data=10)
    posterior = Posterior(model, MeanFieldGuide(model))
    first = variance_shares(posterior, [tiny_batch()], 3)
    assert first == variance_shares(posterior, [tiny_batch()], 3)
    assert first.total > 0
    if prior == "gaussian":
        assert first.shares == {"weights": 1.0}


def test_nothing_to_share() -> None:
    model = BayesianLora(tiny_bert(num_layers=1), "point", num_data=10)
    posterior = Posterior(model, MeanFieldGuide(model))
    with pytest.raises(ValueError, match="no latent site"):
        variance_shares(posterior, [tiny_batch()])
    with pytest.raises(ValueError, match="at least one"):
        variance_shares(posterior, [])
    with pytest.raises(ValueError, match="num_draws should be at least 2"):
        shares_of(linear, SOURCES, 1)
