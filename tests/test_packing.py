"""Packed options: the scores, gradients and predictions of a row for each option, from a row for each item."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bayeslora_pyro import BayesianLora, Choice, MeanFieldGuide, Posterior
from bayeslora_pyro.adapters import adapter as adapter_module
from bayeslora_pyro.adapters import packing, packs
from bayeslora_pyro.laplace import LaplaceConfig, laplace_posterior
from bayeslora_pyro.tasks import Examples, make_loader
from bayeslora_pyro.types import Batch

from .test_tasks_loaders import make_questions, make_tokenizer
from .tiny import tiny_llama

pytestmark = pytest.mark.usefixtures("local_parameters")

WIDTH = 400


def make_model(attention: str = "eager", normalised: bool = False, **lora: Any) -> BayesianLora:
    """A tiny decoder with random factors, whose embeddings and vocabulary have a row for each token."""
    peft_model = tiny_llama(dtype=torch.float64, attention=attention, random_b=True, **lora)
    base_model: Any = peft_model.get_base_model()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base_model.resize_token_embeddings(WIDTH, mean_resizing=False)
        base_model.config.max_position_embeddings = 512
    return BayesianLora(peft_model, "inducing", Choice(length_normalised=normalised), num_data=3).double()


def both_forms(side: str = "right", examples: Examples | None = None, **options: Any) -> tuple[Batch, Batch]:
    tokenizer, questions = make_tokenizer(bos=True, side=side), examples or make_questions()
    return tuple(
        next(iter(make_loader(questions, tokenizer, batch_size=9, shuffle=False, form=form, **options)))
        for form in ("options", "packed")
    )  # type: ignore[return-value]


def scores(model: BayesianLora, batch: Batch, num_draws: int | None = None) -> Tensor:
    weights = model.lora_weights()
    if num_draws:
        weights = {
            name: torch.stack([value * (1 + k) for k in range(num_draws)]) for name, value in weights.items()
        }
    return model.likelihood.scores(model.run_with(weights, batch), batch)


def rows_of(packed: Batch) -> list[list[int]]:
    """The row of each option, read out of packed ones by position."""
    rows = []
    for ids, option, real, position in zip(
        *(packed[name] for name in ("input_ids", "option", "attention_mask", "position_ids")), strict=True
    ):
        for number in range(int(option.max()) + 1):
            mine = ((option == -1) | (option == number)) & real.bool()
            assert position[mine].tolist() == list(range(int(mine.sum())))
            rows.append(ids[mine].tolist())
    return rows


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_length", [24, 128])
def test_a_packed_row_holds_the_rows_of_its_options(side: str, max_length: int) -> None:
    rows, packed = both_forms(side, max_length=max_length)
    expected = [
        ids[real.bool()].tolist() for ids, real in zip(rows["input_ids"], rows["attention_mask"], strict=True)
    ]
    assert rows_of(packed) == expected
    assert int(packed["option_mask"].sum()) == int(rows["option_mask"].sum())
    assert packed["labels"].tolist() == rows["labels"].tolist()


def test_what_the_options_share_stands_once() -> None:
    rows, packed = both_forms()
    assert packed["attention_mask"].sum() < 0.5 * rows["attention_mask"].sum()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_length", [24, 128])  # with 24 some questions are cut, by option differently
def test_scores_are_those_of_a_row_for_each_option(
    attention: str, normalised: bool, side: str, max_length: int
) -> None:
    model = make_model("eager" if side == "left" else attention, normalised)
    rows, packed = both_forms(side, max_length=max_length)
    if side == "left":  # where a float64 Llama gives NaN for a row that begins with padding, if not packed
        rows, _ = both_forms(max_length=max_length)
    for num_draws in (None, 3):
        torch.testing.assert_close(
            scores(model, packed, num_draws), scores(model, rows, num_draws), rtol=1e-6, atol=1e-6
        )


def see_all_before(base_model: nn.Module, batch: Batch) -> Tensor:
    return packing_seen_tokens(base_model, batch | {"option": torch.full_like(batch["option"], -1)})


packing_seen_tokens = packing.seen_tokens


def test_planted_fault_options_that_see_one_another_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (rows, packed) = make_model(), both_forms()
    monkeypatch.setattr(adapter_module, "seen_tokens", see_all_before)
    difference = scores(model, packed) - scores(model, rows)
    assert difference[:, 0].abs().max() < 1e-6  # nothing comes before the first option
    assert difference[difference.isfinite()].abs().max() > 1e-3


def test_planted_fault_positions_that_go_on_are_caught() -> None:
    model, (rows, packed) = make_model(), both_forms()
    moved = packed | {
        "position_ids": torch.arange(packed["input_ids"].shape[1]).expand_as(packed["input_ids"])
    }
    difference = scores(model, moved) - scores(model, rows)
    assert difference[difference.isfinite()].abs().max() > 1e-3


def test_gradients_are_those_of_a_row_for_each_option() -> None:
    found = []
    for batch in both_forms():
        model = make_model()
        weights = {name: value.requires_grad_() for name, value in model.lora_weights().items()}
        outputs = model.run_with(weights, batch)
        loss = -model.likelihood.distribution(outputs, batch).log_prob(batch["labels"]).sum()
        found.append(torch.autograd.grad(loss, list(weights.values())))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("memory_budget", [None, 1])
@pytest.mark.parametrize("lora", [{}, {"layers_to_transform": [1]}], ids=["all layers", "shared prefix"])
def test_draws_of_a_posterior_predict_the_same(memory_budget: int | None, lora: dict[str, Any]) -> None:
    model = make_model(**lora)
    posterior = Posterior(model, MeanFieldGuide(model, scale=0.3, noise_scale=0.3).double())
    rows, packed = (
        posterior.predict([batch], 4, seed=1, memory_budget=memory_budget).log_probs for batch in both_forms()
    )
    assert rows.exp().std(0).max() > 1e-3
    torch.testing.assert_close(packed, rows, rtol=1e-6, atol=1e-6)


def test_draws_share_a_packed_batch() -> None:
    model, (_, packed) = make_model(), both_forms()
    assert model.likelihood.num_items(packed) == 3
    assert model.likelihood.most_draws(packed, 3) == 3
    assert model.likelihood.item_of_row(packed).tolist() == [0, 1, 2]
    assert model.likelihood.column_of_row(packed) is None


def test_linearised_predictions_are_the_same() -> None:
    peft_model = make_model().adapter.peft_model
    model = BayesianLora(peft_model, "point", Choice(), num_data=3).double()
    rows, packed = both_forms()
    found = laplace_posterior(model, [rows], LaplaceConfig(precision=1.0))
    first, second = (found.predict([batch], 50, seed=0).log_probs for batch in (rows, packed))
    assert first[first.isfinite()].std() > 1e-2
    torch.testing.assert_close(second, first, rtol=1e-5, atol=1e-5)


class TestWhatPacks:
    @pytest.mark.parametrize("attention", ["eager", "sdpa"])
    def test_a_decoder_does(self, attention: str) -> None:
        base_model = make_model(attention).adapter.peft_model.get_base_model()
        modes = [part.training for part in base_model.modules()]
        assert packs(base_model)
        assert [part.training for part in base_model.modules()] == modes

    def test_one_that_heeds_no_mask_does_not(self, monkeypatch: pytest.MonkeyPatch) -> None:
        base_model = make_model().adapter.peft_model.get_base_model()
        monkeypatch.setattr(packing, "seen_tokens", see_all_before)
        assert not packs(base_model)

    def test_attention_without_a_mask_is_refused(self) -> None:
        model, (_, packed) = make_model(), both_forms()
        model.adapter.peft_model.config._attn_implementation = "flash_attention_2"
        assert not packs(model.adapter.peft_model.get_base_model())
        with pytest.raises(ValueError, match=r"'flash_attention_2', which takes no mask .* form='options'"):
            scores(model, packed)

    def test_texts_longer_than_a_sliding_window_are_refused(self) -> None:
        model, (_, packed) = make_model(), both_forms()
        model.adapter.peft_model.config.sliding_window = 8
        with pytest.raises(ValueError, match="sees the last 8 only: make the loader with form='options'"):
            scores(model, packed)

    def test_an_option_without_a_token_is_refused(self) -> None:
        model, (_, packed) = make_model(), both_forms()
        emptied = packed["option_mask"].masked_fill(packed["option"] == 1, 0)
        with pytest.raises(ValueError, match="option_mask has an option without a token"):
            scores(model, packed | {"option_mask": emptied})
