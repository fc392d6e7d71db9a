"""`bayeslora generate`, against the library."""

import json
import re
from pathlib import Path

import pytest
import torch

from bayeslora_pyro import Posterior
from bayeslora_pyro.tasks import load_base_model, load_file, make_loader

from .cli_files import FAST, bayeslora, llama, reviews, write

__all__ = ["llama"]

SHORT = ["--num-draws", 3, "--max-new-tokens", 4]


@pytest.fixture(scope="session")
def writer(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a decoder on texts; not to be changed."""
    folder = tmp_path_factory.mktemp("writer")
    data = write(folder / "story.jsonl", [{"text": row["review"]} for row in reviews(30)])
    assert bayeslora("fit", "--model", llama, "--data", data, *FAST, "--output", folder / "run") == 0
    return folder / "run"


def by_hand(run: Path, llama: Path, prompts: list[str], **options):
    base_model, tokenizer = load_base_model(str(llama), task_type="next_token")
    posterior = Posterior.load(run, base_model)
    return posterior.generate(prompts, 3, tokenizer=tokenizer, max_new_tokens=4, **options)


def test_texts_come_with_their_uncertainty(writer: Path, llama: Path, tmp_path: Path, capsys) -> None:
    prompts = ["the film is", "the plot", "day 7"]
    file, target = write(tmp_path / "p.jsonl", [{"prompt": each} for each in prompts]), tmp_path / "out.json"
    assert bayeslora("generate", writer, "--prompts", file, *SHORT, "--batch-size", 3, "--json", target) == 0
    output = capsys.readouterr()
    assert output.err == ""
    written, wanted = json.loads(target.read_text()), by_hand(writer, llama, prompts)
    assert written["by"] == "mixture"
    for place, row in enumerate(written["generations"]):
        assert (row["prompt"], row["text"]) == (prompts[place], wanted.texts[place])
        assert row["num_tokens"] == 4 == len(row["per_token"]["tokens"])
        for name in ("entropy", "aleatoric", "epistemic"):
            assert row["per_token"][name] == pytest.approx(getattr(wanted, name)[place].tolist(), abs=1e-5)
            assert row[name] == pytest.approx(sum(row["per_token"][name]), rel=1e-5)
        assert row["log_prob"] == pytest.approx(float(wanted.log_prob[place]), rel=1e-5)
        assert f"{row['prompt']}{row['text']}" in output.out
    assert bayeslora("generate", writer, "--prompt", prompts[1], *SHORT, "--json", target) == 0
    (row,) = json.loads(target.read_text())["generations"]
    assert row["text"] == wanted.texts[1]


def test_each_draw_writes(writer: Path, llama: Path, tmp_path: Path, capsys) -> None:
    target, flags = tmp_path / "out.json", ["--by", "draw", "--temperature", 1, "--top-p", 0.9, "--seed", 3]
    assert bayeslora("generate", writer, "--prompt", "the film", *SHORT, *flags, "--json", target) == 0
    (row,) = json.loads(target.read_text())["generations"]
    wanted = by_hand(writer, llama, ["the film"], seed=3, by="draw", temperature=1.0, top_p=0.9)
    assert [each["text"] for each in row["draws"]] == list(wanted.texts[0])
    assert row["entropy"] == pytest.approx(float(wanted.entropy[0]), rel=1e-5)
    assert row["share"] in (1 / 3, 2 / 3, 1)
    assert "% of the draws" in capsys.readouterr().out


def test_the_mean_writes(writer: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    assert (
        bayeslora("generate", writer, "--prompt", "the film", *SHORT, "--by", "mean", "--json", target) == 0
    )
    (row,) = json.loads(target.read_text())["generations"]
    assert row["epistemic"] == 0


def test_prompts_of_a_file_are_checked(writer: Path, tmp_path: Path, capsys) -> None:
    for row, words in (
        ({"question": "a"}, "has no column 'prompt'"),
        ({"prompt": ""}, "line 1: 'prompt' is missing"),
    ):
        file = write(tmp_path / "p.jsonl", [row])
        assert bayeslora("generate", writer, "--prompts", file) == 2
        (message,) = capsys.readouterr().err.splitlines()
        assert message.startswith("bayeslora: --prompts: ")
        assert words in message


def test_the_examples_of_the_page_run(writer: Path, llama: Path) -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "generation.md").read_text(encoding="utf-8")
    base_model, tokenizer = load_base_model(str(llama), task_type="next_token")
    examples = load_file(writer.parent / "story.jsonl")
    loader = make_loader(examples, tokenizer, batch_size=8, shuffle=False, max_length=16)
    names = {
        "posterior": Posterior.load(writer, base_model),
        "tokenizer": tokenizer,
        "loader": loader,
        "torch": torch,
    }
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, names)
    assert names["generation"].tokens.shape[0] == 2
    assert len(names["apart"].texts[0]) == 8
    assert names["figure"].low < names["figure"].value < names["figure"].high
