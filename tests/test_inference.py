"""Fitting: the ELBO scaled once, whatever the batches, its parts, and nothing global touched."""

import math
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import bayeslora_pyro.elbo
from bayeslora_pyro.guides import GUIDES
from bayeslora_pyro.inference import fit
from bayeslora_pyro.models import BayesianLora, Classification, InducingPrior

from .pairs import NUM_DATA, certain, data, learned, pair, split
from .test_adapters import assert_same, snapshot
from .tiny import Batch, tiny_batch, tiny_bert


def mean_elbo(size: int, accumulate: int) -> float:
    """The mean over an epoch of the ELBO that is shown, each step weighted by its number of items."""
    model, guide = certain()
    batches = split(tiny_batch(items=NUM_DATA), size)
    steps = math.ceil(len(batches) / accumulate)
    frozen = {"learning_rate": 1e-30, "head_learning_rate": 0.0}
    history = fit(
        model, guide, batches, num_steps=steps, accumulate=accumulate, progress=False, **frozen
    ).history
    sizes = [len(batch["labels"]) for batch in batches]
    items = [sum(sizes[i : i + accumulate]) for i in range(0, len(sizes), accumulate)]
    return sum(row["elbo"] * n for row, n in zip(history, items, strict=True)) / NUM_DATA


def exact_elbo() -> float:
    model, _ = certain()
    logits = model.run_with(model.lora_weights(), batch := tiny_batch(items=NUM_DATA)).logits
    log_likelihood = -nn.functional.cross_entropy(logits, batch["labels"], reduction="sum")
    factors = torch.cat([weight.flatten() for weight in model.lora_weights().values()])
    log_prior = torch.distributions.Normal(0.0, 1.0).log_prob(factors).sum()
    return (log_likelihood + log_prior).item() / NUM_DATA


@pytest.mark.parametrize(("size", "accumulate"), [(7, 1), (3, 1), (2, 1), (2, 2), (1, 7)])
def test_elbo_is_scaled_once_whatever_the_batches(size: int, accumulate: int) -> None:
    assert mean_elbo(size, accumulate) == pytest.approx(exact_elbo(), rel=1e-5)


def test_planted_fault_unscaled_likelihood_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bayeslora_pyro.elbo, "_total", lambda site, value: value.sum())
    assert mean_elbo(7, 1) == pytest.approx(exact_elbo(), rel=1e-5)  # one batch of all items is blind to it
    assert mean_elbo(3, 1) != pytest.approx(exact_elbo(), rel=1e-3)


def gradient(batches: list[Batch], accumulate: int) -> dict[str, Tensor]:
    model, guide = certain()
    fit(model, guide, batches, num_steps=1, accumulate=accumulate, progress=False)
    return {name: parameter.grad for name, parameter in learned(model, guide).items()}


@pytest.mark.parametrize("sizes", [(3, 3, 1), (1, 6), (2, 2, 2, 1)])
def test_accumulated_gradient_is_that_of_the_whole_batch(sizes: tuple[int, ...]) -> None:
    whole = tiny_batch(items=NUM_DATA)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = [
        {name: value[start : start + size] for name, value in whole.items()}
        for start, size in zip(starts, sizes, strict=True)
    ]
    wanted = gradient([whole], 1)
    for name, found in gradient(parts, len(parts)).items():
        torch.testing.assert_close(found, wanted[name], rtol=1e-4, atol=1e-6)


def test_parts_are_shown_and_add_up() -> None:
    model, guide = pair(scale=0.3, noise_scale=0.2)
    kl_v = sum(
        (0.5 * (0.3**2 + loc.square() - 1) - math.log(0.3)).sum().item()
        for name, loc in guide.named_parameters()
        if name.endswith("loc")
    )
    weights = sum(w.numel() for w in model.lora_weights().values())
    kl_w = weights * (0.2**2 / 2 - math.log(0.2) - 0.5)
    history = fit(model, guide, data(), num_steps=10, kl_weight=0.5, kl_warmup=0.4, progress=False).history
    assert history[0]["kl_V"] == pytest.approx(kl_v / NUM_DATA, rel=1e-5)
    assert history[0]["kl_W"] == pytest.approx(kl_w / NUM_DATA, rel=1e-5)
    for step, row in enumerate(history):
        assert row["step"] == step
        assert row["kl"] == pytest.approx(row["kl_V"] + row["kl_W"])
        assert row["elbo"] == pytest.approx(row["expected_log_likelihood"] - row["kl"])
    assert [row["kl_weight"] for row in history] == pytest.approx([0.125, 0.25, 0.375, *[0.5] * 7])


def test_kl_weight_tempers_the_divergences_only() -> None:
    def guide_gradient(kl_weight: float) -> Tensor:
        model, guide = certain()
        fit(model, guide, data()[:1], num_steps=1, kl_weight=kl_weight, kl_warmup=0.0, progress=False)
        return torch.cat([p.grad.flatten() for p in guide.parameters() if p.grad is not None])

    _, guide = certain()
    prior = torch.cat(
        [loc.detach().flatten() for name, loc in guide.named_parameters() if name.endswith("loc")]
    )
    none, half, one = (guide_gradient(weight) for weight in (0.0, 0.5, 1.0))
    torch.testing.assert_close(one - none, prior / NUM_DATA, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(half - none, prior / (2 * NUM_DATA), rtol=1e-4, atol=1e-6)


def test_particles_are_averaged() -> None:
    def first(**options: Any) -> dict[str, float]:
        model, guide = certain()
        return fit(model, guide, data(), num_steps=1, progress=False, **options).history[0]

    assert first(num_particles=3) == pytest.approx(first(), rel=1e-5)


def test_nothing_global_is_touched(untouched_rng: None, tmp_path: Any) -> None:
    peft_model = tiny_bert(dropout=0.1)
    before = snapshot(peft_model)
    model = BayesianLora(peft_model, InducingPrior(rows=3, cols=3), Classification(), NUM_DATA)
    guide = GUIDES["flow"](model)
    posterior = fit(model, guide, data(), num_steps=2, dropout=True, progress=False).posterior
    posterior.save(tmp_path / "posterior")
    posterior.draws(1, tmp_path / "draws")
    posterior.predict(data(), num_draws=2)
    posterior.log_likelihood(DataLoader(split(tiny_batch(), 1), batch_size=None), num_draws=2)
    for draw in (posterior.sample, posterior.sample_prior, posterior.log_weights, posterior.weights):
        draw(2)
    posterior.mean_adapter()
    assert not list(pyro.get_param_store().keys())
    assert not pyro.poutine.runtime._PYRO_STACK
    assert torch.distributions.Distribution._validate_args
    assert torch.is_grad_enabled()
    assert_same(before, snapshot(peft_model))
