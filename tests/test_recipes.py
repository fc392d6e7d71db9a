"""Every method of the table: it fits, predicts, is saved and comes back, and has a posterior for ArviZ or none."""

import importlib
import inspect
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bayeslora_pyro import METHODS, Ensemble, FitResult, to_arviz
from bayeslora_pyro.cli.commands import COMMANDS
from bayeslora_pyro.methods import Recipe

from .tiny import tiny_batch, tiny_bert

ROOT = Path(__file__).resolve().parents[1]
STEPS = 10


def data() -> list[dict[str, Any]]:
    return [tiny_batch(items=6, seed=seed) for seed in range(2)]


def recipe_of(name: str) -> Recipe:
    return METHODS[name](tiny_bert(random_b=False), "classification", 12, seed=1)


@pytest.fixture(scope="module")
def results() -> dict[str, FitResult]:
    return {}


def fitted(name: str, results: dict[str, FitResult]) -> FitResult:
    if name not in results:
        results[name] = recipe_of(name).fit(data(), num_steps=STEPS, progress=False)
    return results[name]


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_fits_and_predicts(self, name: str, results: dict[str, FitResult]) -> None:
        recipe, result = recipe_of(name), fitted(name, results)
        assert len(result.history) == STEPS
        assert len(result.chains) == recipe.num_members
        assert any(member is result.posterior for member in result.chains)
        prediction = result.chains.predict(data(), recipe.num_members * 2, seed=3)
        assert prediction.log_probs.shape == (recipe.num_members * 2, 12, 3)
        assert prediction.evaluate()["n"] == 12

    def test_draws_are_the_same_however_they_share_passes(
        self, name: str, results: dict[str, FitResult]
    ) -> None:
        posterior = fitted(name, results).posterior
        tiled = posterior.predict(data(), 4, memory_budget=2**30).log_probs
        torch.testing.assert_close(posterior.predict(data(), 4, memory_budget=1).log_probs, tiled)
        torch.testing.assert_close(posterior.predict(data(), 2).log_probs, tiled[:2])

    def test_comes_back_exactly(self, name: str, results: dict[str, FitResult], tmp_path: Path) -> None:
        chains = fitted(name, results).chains
        chains.save(tmp_path / "saved")
        loaded = Ensemble.load(tmp_path / "saved", tiny_bert(random_b=False).unload())
        number = 2 * len(chains)
        assert torch.equal(loaded.predict(data(), number).log_probs, chains.predict(data(), number).log_probs)
        assert [member.metadata for member in loaded] == [member.metadata for member in chains]
        assert len({id(member.model.adapter.peft_model) for member in loaded}) == 1

    def test_gives_its_draws_to_arviz(self, name: str, results: dict[str, FitResult]) -> None:
        posterior = fitted(name, results).posterior
        if posterior.site_dims:
            container = to_arviz(posterior, data(), num_draws=3, sites=list(posterior.site_dims)[:1])
            assert dict(container.posterior.sizes)["draw"] == 3

    def test_says_where_it_comes_from_and_is_listed(self, name: str) -> None:
        build: Any = METHODS[name]
        build = build.func if isinstance(build, partial) else build
        assert "https://" in (inspect.getdoc(importlib.import_module(build.__module__)) or "")
        for file in ("README.md", "docs/cli.md"):
            assert f"`{name}`" in (ROOT / file).read_text(encoding="utf-8"), file
        (option,) = (option for option in COMMANDS["fit"].options if option.name == "method")
        assert name in option.about


def test_members_of_an_ensemble_start_apart() -> None:
    recipe = recipe_of("ensemble")
    result = recipe.fit(data(), num_steps=1, progress=False)
    first, second, _ = (member.model.lora_weights()["A_2x16"] for member in result.chains)
    assert not torch.allclose(first, second)


def test_members_of_a_checkpoint_ensemble_are_points_of_one_fit(results: dict[str, FitResult]) -> None:
    *snapshots, end = fitted("checkpoint-ensemble", results).chains
    assert [member.metadata["snapshot"] for member in snapshots] == [6, 7, 8, 9]
    assert [len(member.history) for member in snapshots] == [6, 7, 8, 9]
    for member in (snapshots[0], end):
        short = METHODS["lora"](tiny_bert(random_b=False), "classification", 12, seed=1)
        plain = short.fit(data(), num_steps=len(member.history), progress=False).posterior
        assert torch.equal(member.predict(data(), 1).log_probs, plain.predict(data(), 1).log_probs)


def test_snapshots_survive_an_interruption(results: dict[str, FitResult], tmp_path: Path) -> None:
    def interrupt(row: dict[str, float]) -> None:
        if row["step"] == 7:
            raise KeyboardInterrupt

    options: dict[str, Any] = {
        "num_steps": STEPS,
        "progress": False,
        "checkpoint": tmp_path / "fit.checkpoint",
    }
    with pytest.raises(KeyboardInterrupt):
        recipe_of("checkpoint-ensemble").fit(data(), callbacks=[interrupt], **options)
    resumed = recipe_of("checkpoint-ensemble").fit(data(), resume=True, **options)
    whole = fitted("checkpoint-ensemble", results)
    for ours, theirs in zip(resumed.chains, whole.chains, strict=True):
        assert torch.equal(ours.predict(data(), 1).log_probs, theirs.predict(data(), 1).log_probs)
        assert (ours.history, ours.metadata) == (theirs.history, theirs.metadata)


def test_snapshots_that_a_run_has_passed_cannot_be_asked_for(tmp_path: Path) -> None:
    place = tmp_path / "fit.checkpoint"
    recipe_of("checkpoint-ensemble").fit(data(), num_steps=20, progress=False, checkpoint=place)
    with pytest.raises(ValueError, match="without a snapshot after step 7, which num_steps=11 asks for"):
        recipe_of("checkpoint-ensemble").fit(
            data(), num_steps=11, progress=False, checkpoint=place, resume=True
        )
