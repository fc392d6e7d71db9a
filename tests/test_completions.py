"""Texts with a prompt: only what comes after it is learned and scored, and the perplexity says how sure it is."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from bayeslora_pyro import metrics
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.tasks import load_file, make_loader, split

from .cli_files import FAST, bayeslora, llama, reviews, write
from .exact import close, rand
from .tiny import tiny_llama

__all__ = ["llama"]


def pairs(num: int) -> list[dict[str, str]]:
    return [
        {
            "prompt": row["review"].rpartition(" is ")[0],
            "completion": " is " + row["review"].rpartition(" is ")[2],
        }
        for row in reviews(num)
    ]


@pytest.fixture
def tokenizer(llama: Path):
    found = AutoTokenizer.from_pretrained(llama)
    found.eos_token = "[SEP]"
    return found


@pytest.mark.parametrize("name", ["chat.jsonl", "chat.csv"])
def test_prompts_are_masked_and_texts_end(name: str, tmp_path: Path, tokenizer) -> None:
    examples = load_file(write(tmp_path / name, pairs(6)))
    assert (examples.kind, examples.texts[0]) == ("text", pairs(6)[0]["prompt"])
    for max_length in (48, 7):
        (batch,) = make_loader(examples, tokenizer, batch_size=6, shuffle=False, max_length=max_length)
        for row, pair in enumerate(pairs(6)):
            ids = batch["input_ids"][row][batch["attention_mask"][row].bool()].tolist()
            labels = batch["labels"][row][batch["attention_mask"][row].bool()].tolist()
            whole = tokenizer(pair["prompt"] + pair["completion"])["input_ids"] + [tokenizer.eos_token_id]
            prompt = tokenizer(pair["prompt"])["input_ids"]
            wanted = whole[len(prompt) :]
            kept = [label for label in labels if label != -100]
            assert kept == wanted[: max_length - 1]
            assert labels[0] == -100
            assert ids[0] == whole[0]
            assert ids[-len(kept) :] == kept
            assert len(ids) == min(len(whole), max_length)
            if max_length == 48:
                assert ids == whole
        assert (batch["labels"][batch["attention_mask"] == 0] == -100).all()


def test_long_completions_lose_their_end(tmp_path: Path, tokenizer) -> None:
    row = {"prompt": "the film", "completion": " is lovely day 1 is great day 2"}
    examples = load_file(write(tmp_path / "chat.jsonl", [row]))
    (batch,) = make_loader(examples, tokenizer, batch_size=1, shuffle=False, max_length=4)
    whole = tokenizer(row["prompt"] + row["completion"])["input_ids"]
    assert batch["input_ids"].tolist() == [[whole[0], *whole[3:6]]]
    assert batch["labels"].tolist() == [[-100, *whole[3:6]]]


def test_other_columns_speak_for_other_kinds(tmp_path: Path) -> None:
    labelled = [{**pair, "text": "the film", "label": str(i % 2)} for i, pair in enumerate(pairs(4))]
    assert load_file(write(tmp_path / "labelled.jsonl", labelled)).kind == "classification"
    plain = load_file(write(tmp_path / "plain.jsonl", pairs(4)), text_column="prompt")
    assert (plain.kind, plain.completions) == ("text", ())
    with pytest.raises(ValueError, match="line 2: 'completion' is missing or empty"):
        load_file(write(tmp_path / "bad.jsonl", [pairs(1)[0], {"prompt": "the film", "completion": ""}]))


def test_items_are_told_apart_by_their_completions(tmp_path: Path) -> None:
    rows = [{"prompt": "the film", "completion": f" is day {day}"} for day in range(20)]
    examples = load_file(write(tmp_path / "chat.jsonl", rows))
    parts = split(examples, train=None, tuning=4, test=6, seed=0)
    found = [part.completions for part in (parts.train, parts.tuning, parts.test)]
    assert [len(part) for part in found] == [10, 4, 6]
    assert sorted(sum(found, ())) == sorted(examples.completions)


def test_what_stands_in_the_prompt_is_not_scored() -> None:
    model = BayesianLora(tiny_llama(), "point", "next_token")
    ids = torch.randint(3, 30, (2, 6), generator=torch.Generator().manual_seed(0))
    labels = ids.clone()
    labels[:, :3] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    outputs = model.run_with(model.lora_weights(), batch)
    scores = model.likelihood.distribution(outputs, batch).log_prob(model.likelihood.observed(batch))
    expected = outputs.logits.log_softmax(-1)[:, 2:-1].gather(-1, ids[:, 3:, None])[..., 0].sum(-1)
    torch.testing.assert_close(scores, expected)
    everything = model.likelihood.distribution(
        outputs, {**batch, "labels": ids}
    )  # planted: the prompt counted too
    assert (everything.log_prob(ids[:, 1:]) - expected).abs().min() > 1


def test_perplexity_is_that_of_the_mixture() -> None:
    scores, tokens = 3 * rand(4, 30) - 40, torch.arange(30) % 7 + 5
    found = metrics.perplexity(scores, tokens)
    total = sum(float(scores[:, n].exp().mean().log()) for n in range(30))
    assert found.value == pytest.approx(torch.tensor(-total / int(tokens.sum())).double().exp().item())
    assert found.nll == pytest.approx(-total / int(tokens.sum()))
    close(found.of_draws, (-scores.sum(1) / tokens.sum()).exp(), 1e-12)
    assert found.low < found.value < found.high
    wrong = (-scores.mean(0).sum() / tokens.sum()).exp()  # planted: logarithms averaged
    assert abs(float(wrong) / found.value - 1) > 0.05
    with pytest.raises(ValueError, match="give the shapes"):
        metrics.perplexity(scores[0], tokens)
    with pytest.raises(ValueError, match="nothing was scored"):
        metrics.perplexity(scores, 0 * tokens)


def test_the_interval_covers_the_truth() -> None:
    """Of 200 sets of items from one distribution, about 95 % have the perplexity of all within their interval."""
    generator, inside = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        scores = 4 * torch.randn(1, 60, generator=generator, dtype=torch.float64) - 30
        found = metrics.perplexity(scores, torch.full((60,), 10), num_resamples=200)
        inside += found.low < torch.tensor(3.0).exp().item() < found.high
    assert 180 <= inside <= 199


def test_completions_are_fitted_and_scored(llama: Path, tmp_path: Path, capsys) -> None:
    data = write(tmp_path / "chat.jsonl", pairs(40))
    assert bayeslora("fit", "--model", llama, "--data", data, *FAST, "--output", tmp_path / "run") == 0
    assert bayeslora("evaluate", tmp_path / "run", "--num-draws", 3, "--json", tmp_path / "m.json") == 0
    row = json.loads((tmp_path / "m.json").read_text())["chat"]
    assert (
        row["tokens"] == row["n"] * 4
    )  # "is", a word, "day" and a number; no token ends a text of this tokenizer
    assert row["perplexity_low"] < row["perplexity"] < row["perplexity_high"]
    assert row["perplexity_deviation"] > 0
    output = capsys.readouterr()
    assert output.err == ""
    assert "SD draws" in output.out
