"""Chains: independent fits, and what they predict together."""

from pathlib import Path

import pytest
import torch

from bayeslora_pyro import METHODS, BayesianLora, Ensemble, FitResult, MeanFieldGuide, fit
from bayeslora_pyro.diagnostics import to_arviz
from bayeslora_pyro.metrics import mean_log_probs

from .tiny import tiny_batch, tiny_bert

KINDS = {"classification": {}, "regression": {"num_labels": 1}}


def data(kind: str = "classification") -> list[dict[str, torch.Tensor]]:
    return [tiny_batch(kind, seed=seed) for seed in range(2)]


def fitted(kind: str = "classification", num_chains: int = 2, num_steps: int = 2, **options) -> FitResult:
    model = BayesianLora(tiny_bert(random_b=False, **KINDS[kind]), "inducing", kind, num_data=10)
    return fit(
        model,
        MeanFieldGuide(model),
        data(kind),
        num_steps=num_steps,
        num_chains=num_chains,
        progress=False,
        **options,
    )


def state(posterior) -> dict[str, torch.Tensor]:
    modules = {"model": posterior.model, "guide": posterior.guide}
    return {
        f"{part}.{name}": p.detach().clone()
        for part, module in modules.items()
        for name, p in module.named_parameters()
    }


def test_the_first_chain_is_the_single_fit() -> None:
    single, chains = fitted(num_chains=1), fitted()
    for name, value in state(single.posterior).items():
        assert torch.equal(value, state(chains.chains[0])[name])


def test_chains_start_apart_and_stay_what_they_are() -> None:
    first, second = (state(posterior) for posterior in fitted().chains)
    assert first.keys() == second.keys()
    apart = [name for name, value in first.items() if not torch.allclose(value, second[name], atol=0.05)]
    assert any("loc" in name for name in apart)
    assert any("z_col" in name for name in apart)
    assert any("head" in name for name in apart)
    again = state(fitted().chains[1])
    assert all(torch.equal(value, again[name]) for name, value in second.items())


def test_chains_of_lora_start_from_other_factors_but_no_update() -> None:
    recipe = METHODS["lora"](tiny_bert(random_b=False), "classification", 10)
    other = recipe.model.fresh(7)
    for stack in other.stacks:
        before, after = (m.prior_of(stack).sample_weights(stack) for m in (recipe.model, other))
        assert torch.equal(before, after) == (stack.role == "B")
        if stack.role == "A":
            assert (after.std() / before.std()).item() == pytest.approx(1, abs=0.3)


def test_chains_of_a_trained_lora_start_there() -> None:
    model = BayesianLora(tiny_bert(random_b=True), "point")
    other = model.fresh(7)
    for name, weights in model.lora_weights().items():
        assert torch.equal(weights, other.lora_weights()[name])
    assert all(torch.equal(a, b) for a, b in zip(model.head, other.head, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_of_all_chains_count_alike(kind: str) -> None:
    ensemble = fitted(kind).chains
    joint = ensemble.predict(data(kind), num_draws=6, seed=3)
    parts = [member.predict(data(kind), 3, 3 + k) for k, member in enumerate(ensemble)]
    for name in ("log_probs",) if kind == "classification" else ("loc", "scale"):
        assert torch.equal(getattr(joint, name), torch.cat([getattr(part, name) for part in parts]))
    assert torch.equal(joint.labels, parts[0].labels)
    scores = ensemble.log_likelihood(data(kind), num_draws=6, seed=3)
    assert scores.shape == (6, 10)
    if kind == "classification":
        average = torch.stack([mean_log_probs(part.log_probs).exp() for part in parts]).mean(0)
        torch.testing.assert_close(joint.probs, average)


def test_an_ensemble_saves_and_comes_back_exactly(tmp_path: Path) -> None:
    result = fitted()
    result.chains.save(tmp_path / "ensemble")

    def base_model() -> torch.nn.Module:
        return tiny_bert(random_b=False).unload()

    loaded = Ensemble.load(tmp_path / "ensemble", base_model)
    assert len(loaded) == 2
    expected = result.chains.predict(data(), num_draws=4)
    assert torch.equal(loaded.predict(data(), num_draws=4).log_probs, expected.log_probs)


@pytest.mark.parametrize("text", [None, "{", '{"format": 1}', '{"format": 1, "num_chains": 0}', "[1]"])
def test_a_damaged_ensemble_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "ensemble.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="ensemble"):
        Ensemble.load(tmp_path)


def test_bad_numbers_are_refused() -> None:
    ensemble = fitted().chains
    with pytest.raises(ValueError, match="multiple of the 2 members"):
        ensemble.predict(data(), num_draws=3)
    with pytest.raises(ValueError, match="num_chains should be at least 1"):
        fitted(num_chains=0)
    with pytest.raises(ValueError, match="posteriors is empty"):
        Ensemble([])


def test_interrupted_chains_go_on_to_the_same_numbers(tmp_path: Path) -> None:
    whole = fitted()

    def interrupt(row) -> None:
        calls.append(row)
        if len(calls) == 3:  # the first step of the second chain
            raise KeyboardInterrupt

    calls: list[object] = []
    place = tmp_path / "fit.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        fitted(checkpoint=place, callbacks=[interrupt])
    assert place.exists()
    assert place.with_name("fit.checkpoint.1").exists()
    resumed = fitted(checkpoint=place, resume=True)
    for ours, theirs in zip(resumed.chains, whole.chains, strict=True):
        for name, value in state(ours).items():
            assert torch.equal(value, state(theirs)[name])


def test_arviz_takes_chains() -> None:
    container = to_arviz(fitted().chains, data(), num_draws=4)
    assert dict(container.posterior.sizes)["chain"] == 2
    assert (container.attrs["num_fits"], container.attrs["chain"]) == (2, "one independent fit each")


def test_arviz_knows_snapshots_from_independent_fits() -> None:
    container = to_arviz(fitted(num_steps=4, snapshots=2).chains, data(), num_draws=4)
    assert dict(container.posterior.sizes)["chain"] == 4
    assert (container.attrs["num_fits"], container.attrs["chain"]) == (2, "one snapshot of a fit each")
