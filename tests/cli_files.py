"""What a user of the command has: tiny base models in folders, files of data, and the command itself."""

import csv
import gzip
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bayeslora_pyro import Posterior
from bayeslora_pyro.cli import main
from bayeslora_pyro.tasks import load_base_model

GOOD = ("lovely", "great", "superb")
BAD = ("awful", "dull", "poor")
THINGS = ("film", "plot", "cast", "music")
WORDS = (*GOOD, *BAD, *THINGS, "the", "is", "day", "Question", "Answer", ":", *map(str, range(200)))
LETTERS = (*WORDS, *"ABC")  # what a decoder answers lettered choices with

FAST = ["--num-steps", "4", "--batch-size", "8", "--r", "2", "--prior.rows", "3", "--prior.cols", "3"]
"""Flags of a fit that takes no time."""

MOODS = ["--text-column", "review", "--label-column", "mood"]
"""The columns of a classification of reviews."""

STARS = ["--text-column", "review", "--target-column", "stars"]
"""The columns of a regression on reviews."""


def bayeslora(*arguments: object) -> int:
    """Runs the command in this process."""
    return main([str(argument) for argument in arguments])


def load_run(folder: Path, base: Path) -> Posterior:
    """Loads the posterior of a run over a tiny BERT with two classes, without the command."""
    base_model, _ = load_base_model(str(base), task_type="classification", num_labels=2)
    return Posterior.load(folder, base_model)


def save_bert(folder: Path) -> Path:
    """Saves a tiny BERT without a head, and its tokenizer."""
    config = BertConfig(
        vocab_size=len(WORDS) + 4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=24,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    _save_tokenizer(folder, "[CLS] $A [SEP]", WORDS, max_length=24)
    return folder


def save_llama(folder: Path) -> Path:
    """Saves a tiny Llama and its tokenizer."""
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 4,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=48,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    _save_tokenizer(folder, "[CLS] $A", LETTERS, max_length=48)
    return folder


def _save_tokenizer(folder: Path, template: str, words: tuple[str, ...], max_length: int) -> None:
    special = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
    vocabulary = {word: index for index, word in enumerate((*special, *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=template, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=max_length,
    ).save_pretrained(folder)


def reviews(num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Sentences with a class and a number, no two alike."""
    source = random.Random(seed)
    rows = []
    for day in source.sample(range(200), num):
        mood = source.choice(("pos", "neg"))
        text = f"the {source.choice(THINGS)} is {source.choice(GOOD if mood == 'pos' else BAD)} day {day}"
        rows.append({"review": text, "mood": mood, "stars": 100 + 10 * (mood == "pos") + source.random()})
    return rows


def questions(num: int, seed: int = 0) -> list[dict[str, Any]]:
    """Questions with two or three choices."""
    source = random.Random(seed)
    rows = []
    for day in source.sample(range(200), num):
        choices = source.sample([*GOOD, *BAD], source.choice((2, 3)))
        rows.append({"question": f"the film is day {day}", "choices": choices, "label": day % len(choices)})
    return rows


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows as what the name of the file says."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return path
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """All that a folder holds."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def fitted(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `reviews.csv`, `others.jsonl` and the finished run `run`; not to be changed."""
    folder = tmp_path_factory.mktemp("fitted")
    write(folder / "reviews.csv", reviews(60))
    write(folder / "others.jsonl", reviews(12, seed=1))
    done = bayeslora(
        "fit", "--model", bert, "--data", folder / "reviews.csv", *MOODS, *FAST, "--output", folder / "run"
    )
    assert done == 0
    return folder
