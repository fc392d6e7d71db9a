"""Fitting: the ELBO scaled once, its parts, step sizes, clipping, and how it stops when something is wrong."""

import math
from collections.abc import Iterator
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import bayeslora_pyro.elbo
from bayeslora_pyro.checkpoints import read_tensors
from bayeslora_pyro.guides import GUIDES, DeltaGuide, Guide, MeanFieldGuide
from bayeslora_pyro.inference import fit
from bayeslora_pyro.models import PRIORS, BayesianLora, Classification, GaussianPrior, InducingPrior

from .test_adapters import assert_same, checkpoint_gradients, snapshot
from .tiny import Batch, tiny_batch, tiny_bert, tiny_llama

NUM_DATA = 7


def split(batch: Batch, size: int) -> list[Batch]:
    items = len(batch["labels"])
    return [
        {name: value[first : first + size] for name, value in batch.items()}
        for first in range(0, items, size)
    ]


def pair(prior: Any = "inducing", guide: str = "mean_field", **options: Any) -> tuple[BayesianLora, Guide]:
    model = BayesianLora(tiny_bert(), prior, num_data=NUM_DATA)
    return model, GUIDES[guide](model, **options)


def certain() -> tuple[BayesianLora, Guide]:
    """A model and a guide without any noise, so that every estimate of the ELBO is the ELBO."""
    model = BayesianLora(tiny_bert(), GaussianPrior(), num_data=NUM_DATA)
    return model, DeltaGuide(model)


def learned(model: nn.Module, guide: nn.Module) -> dict[str, nn.Parameter]:
    return dict(nn.ModuleDict({"model": model, "guide": guide}).named_parameters())


def data(seed: int = 0) -> list[Batch]:
    return split(tiny_batch(items=NUM_DATA, seed=seed), 3)


def mean_elbo(size: int, accumulate: int) -> float:
    """The mean over an epoch of the ELBO that is shown, each step weighted by its number of items."""
    model, guide = certain()
    batches = split(tiny_batch(items=NUM_DATA), size)
    steps = math.ceil(len(batches) / accumulate)
    frozen = {"learning_rate": 0.0, "head_learning_rate": 0.0}
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


def test_parameter_groups_have_their_own_step_sizes() -> None:
    model, guide = pair()
    before = {name: p.detach().clone() for name, p in learned(model, guide).items()}
    fit(model, guide, data(), num_steps=1, learning_rate=1e-2, head_learning_rate=1e-4, progress=False)
    for name, parameter in learned(model, guide).items():
        moved = (parameter.detach() - before[name]).abs().max().item()
        assert moved == pytest.approx(1e-4 if "head" in name else 1e-2, rel=0.05)  # Adam's first step


def test_flows_have_a_step_size_of_their_own() -> None:
    model, guide = pair(guide="flow")
    flows = {name: p for name, p in guide.named_parameters() if name.startswith("flow_")}
    before = {name: p.detach().clone() for name, p in flows.items()}
    fit(model, guide, data(), num_steps=1, flow_learning_rate=1e-3, learning_rate=1e-2, progress=False)
    moved = max((p.detach() - before[name]).abs().max().item() for name, p in flows.items())
    assert moved == pytest.approx(1e-3, rel=0.05)


@pytest.mark.parametrize(("schedule", "last"), [("constant", 1.0), ("linear", 0.25), ("cosine", 0.14645)])
def test_schedule_shrinks_the_step(schedule: str, last: float) -> None:
    model, guide = certain()
    sizes: list[float] = []
    head = next(iter(model.head.parameters()))
    values = [head.detach().clone()]

    def note(row: dict[str, float]) -> None:
        sizes.append((head.detach() - values[-1]).norm().item())
        values.append(head.detach().clone())

    options = {"schedule": schedule, "num_steps": 4, "learning_rate": 0.0, "head_learning_rate": 1e-6}
    fit(model, guide, [tiny_batch(items=NUM_DATA)], callbacks=[note], progress=False, **options)
    assert sizes[3] / sizes[0] == pytest.approx(last, rel=0.1)


def test_clipping_reports_the_norm_it_clipped() -> None:
    free, clipped = pair(), pair()
    norm = fit(*free, data(), num_steps=1, progress=False).history[0]["grad_norm"]
    row = fit(*clipped, data(), num_steps=1, max_grad_norm=norm / 10, progress=False).history[0]
    assert row["grad_norm"] == pytest.approx(norm)

    def size(model: nn.Module, guide: nn.Module) -> float:
        gradients = [p.grad.norm() for p in learned(model, guide).values() if p.grad is not None]
        return torch.stack(gradients).norm().item()

    assert size(*free) == pytest.approx(norm, rel=1e-5)
    assert size(*clipped) == pytest.approx(norm / 10, rel=1e-4)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("checkpointed", [False, True], ids=["plain", "checkpointed"])
def test_every_learned_tensor_gets_a_gradient(prior: str, guide: str, checkpointed: bool) -> None:
    peft_model = tiny_llama(num_labels=3)
    if checkpointed:
        checkpoint_gradients(peft_model)
    model = BayesianLora(peft_model, prior, num_data=NUM_DATA)
    fitted = GUIDES[guide](model)
    largest = dict.fromkeys(learned(model, fitted), 0.0)

    def note(row: dict[str, float]) -> None:
        for name, parameter in learned(model, fitted).items():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            largest[name] = max(largest[name], parameter.grad.abs().max().item())

    fit(model, fitted, data(), num_steps=3, callbacks=[note], progress=False)
    assert {name for name, size in largest.items() if size == 0} == set()


def test_gradient_checkpointing_is_used_without_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = fit(*pair(), data(), num_steps=2, progress=False).history
    calls: list[None] = []
    checkpoint = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(
        "bayeslora_pyro.adapters.slots.checkpoint",
        lambda *a, **k: (calls.append(None), checkpoint(*a, **k))[1],
    )
    model, guide = pair()
    checkpoint_gradients(model.adapter.peft_model)
    history = fit(model, guide, data(), num_steps=2, progress=False).history
    assert len(calls) == 4  # two layers, two steps
    assert [row["elbo"] for row in history] == pytest.approx([row["elbo"] for row in plain], rel=1e-6)


def test_dropout_is_on_only_when_asked_for() -> None:
    def first(**options: Any) -> float:
        model = BayesianLora(tiny_bert(dropout=0.5), num_data=NUM_DATA)
        model.adapter.peft_model.train()
        result = fit(model, MeanFieldGuide(model), data(), num_steps=1, progress=False, **options)
        assert all(module.training for module in model.adapter.peft_model.modules())
        return result.history[0]["expected_log_likelihood"]

    model = BayesianLora(tiny_bert(dropout=0.0), num_data=NUM_DATA)
    plain = fit(model, MeanFieldGuide(model), data(), num_steps=1, progress=False).history[0]
    assert first() == plain["expected_log_likelihood"]
    assert first(dropout=True) != plain["expected_log_likelihood"]


def with_nan_label(at: int) -> Iterator[Batch]:
    batch = tiny_batch("regression", items=4)
    for step in range(at + 1):
        yield batch | {"labels": batch["labels"] * (math.nan if step == at else 1.0)}


def regression() -> tuple[BayesianLora, Guide]:
    model = BayesianLora(tiny_bert(num_labels=1), InducingPrior(rows=3, cols=3), "regression", NUM_DATA)
    return model, MeanFieldGuide(model)


def test_nan_loss_names_step_and_site_and_leaves_the_last_good_state(tmp_path: Any) -> None:
    model, guide = regression()
    states = []
    note = lambda row: states.append({n: p.detach().clone() for n, p in learned(model, guide).items()})  # noqa: E731
    with pytest.raises(FloatingPointError, match=r"Step 3: the loss is nan.*'y'.*Lower learning_rate"):
        fit(
            model,
            guide,
            list(with_nan_label(3)),
            progress=False,
            checkpoint=tmp_path / "run",
            callbacks=[note],
        )
    tensors, header = read_tensors(tmp_path / "run")
    assert len(header["history"]) == len(states) == 3
    for name, value in states[-1].items():
        assert torch.equal(tensors[name], value)


def test_nan_divergence_names_its_site() -> None:
    model, guide = pair()
    with torch.no_grad():
        guide.get_parameter("B_16x2.log_scale").fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"Step 0: .*'B_16x2.V'"):
        fit(model, guide, data(), progress=False)


def test_locations_that_cannot_be_factorized_name_step_and_site(tmp_path: Any) -> None:
    """What a step too long does to them: rows so far apart, or so alike, that float64 does not see the nuggets."""
    model, guide = regression()
    locations = model.get_parameter("priors.AB.A_2x16.z_row")
    states: list[dict[str, Tensor]] = []

    def throw(row: dict[str, float]) -> None:
        with torch.no_grad():
            locations.fill_(1e20 if row["step"] == 1 else 1.0)
        states.append({name: p.detach().clone() for name, p in learned(model, guide).items()})

    message = r"Step 2: site 'A_2x16.W' cannot be computed \(linalg.cholesky: .*\)\. Lower learning_rate"
    batches, file = [tiny_batch("regression")], tmp_path / "run"
    with pytest.raises(FloatingPointError, match=message):
        fit(model, guide, batches, num_steps=9, progress=False, checkpoint=file, callbacks=[throw])
    tensors, header = read_tensors(file)
    assert len(header["history"]) == len(states) == 2
    for name, value in learned(model, guide).items():
        assert torch.equal(value, states[-1][name])
        assert torch.equal(value, tensors[name])


@pytest.mark.parametrize("guide", GUIDES)
def test_absurd_learning_rates_stop_the_fit(guide: str) -> None:
    for learning_rate in (10.0, 1e4, 1e20):
        with pytest.raises(FloatingPointError, match=r"Step \d+: .*'.*'.*Lower learning_rate"):
            fit(*pair(guide=guide), data(), num_steps=15, learning_rate=learning_rate, progress=False)


def test_broken_gradient_names_its_parameter_and_moves_nothing(tmp_path: Any) -> None:
    model, guide = pair()
    steps: list[int] = []
    parameter = guide.get_parameter("A_2x16.loc")
    parameter.register_hook(lambda gradient: gradient * (math.inf if len(steps) == 2 else 1.0))
    with pytest.raises(FloatingPointError, match=r"Step 2: the gradient of 'A_2x16.loc' is not finite"):
        fit(model, guide, data(), progress=False, checkpoint=tmp_path / "run", callbacks=[steps.append])
    tensors, header = read_tensors(tmp_path / "run")
    assert len(header["history"]) == 2
    assert torch.equal(tensors["guide.A_2x16.loc"], parameter)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_empty_and_exhausted_loaders_are_refused() -> None:
    with pytest.raises(ValueError, match="loader yields no batch: give it at least one item"):
        fit(*pair(), [], progress=False)
    with pytest.raises(ValueError, match=r"nothing in pass 2: .*a generator can be gone through once"):
        fit(*pair(), iter(data()), progress=False)


def test_labels_out_of_range_are_refused_by_name() -> None:
    batch = tiny_batch() | {"labels": torch.tensor([0, 1, 2, 3, 0])}
    with pytest.raises(ValueError, match=r"labels reach from 0 to 3, and there are 3 classes"):
        fit(*pair(), [batch], progress=False)


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
