"""The command from end to end, on a tiny base model and a small file of classes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

import bayeslora_pyro
from bayeslora_pyro import FitConfig, FlowGuide, InducingPrior, metrics
from bayeslora_pyro.cli.commands import COMMANDS
from bayeslora_pyro.models import RelativeNoisePrior
from bayeslora_pyro.parameters import count_parameters
from bayeslora_pyro.tasks import load_base_model, load_file, make_loader, split

from .cli_files import FAST, MOODS, bayeslora, bert, fitted, load_run, reviews, write

__all__ = ["bert", "fitted"]

STARTUP = """
import sys, time
from bayeslora_pyro.cli import main
code = main(sys.argv[1:])
slow = sorted({"torch", "pyro", "transformers", "peft", "arviz", "numpy"} & set(sys.modules))
sys.stderr.write(f"{code} {slow} {time.process_time():.2f}")
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["fit", "--help"], ["--version"], ["fit", "--nmu-steps", "3"]]
)
def test_starts_without_anything_slow(arguments: list[str]) -> None:
    command = [sys.executable, "-c", STARTUP, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    *_, last = done.stderr.splitlines()
    code, slow, seconds = re.fullmatch(r"(\d) (\[.*\]) (.*)", last).groups()
    assert (code, slow) == ("2" if "--nmu-steps" in arguments else "0", "[]")
    assert float(seconds) < 1.5


def test_module_runs_as_a_command() -> None:
    command = [sys.executable, "-m", "bayeslora_pyro", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"bayeslora-pyro {bayeslora_pyro.__version__}\n"


@pytest.mark.parametrize("name", bayeslora_pyro.__all__)
def test_public_names_are_found_when_used(name: str) -> None:
    assert getattr(bayeslora_pyro, name) is not None
    assert name in dir(bayeslora_pyro)


def test_there_is_no_other_public_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        bayeslora_pyro.fitt  # noqa: B018


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_into_80_columns(command: str, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert bayeslora(command, "--help") == 0
    output = capsys.readouterr().out
    assert all(option.flag in output for option in COMMANDS[command].options)
    assert max(map(len, output.splitlines())) <= 80


def test_options_are_those_of_the_parts() -> None:
    names = {option.name for option in COMMANDS["fit"].options}
    assert {name.partition(".")[2] for name in names if name.startswith("prior.")} == (
        set(InducingPrior().config()) | set(RelativeNoisePrior().config())
    )
    assert set(FitConfig.__dataclass_fields__) <= names
    assert {"transform", "depth"} <= names & set(FlowGuide.__init__.__kwdefaults__)
    assert all(option.about for option in COMMANDS["fit"].options)


def test_fit_writes_a_run(fitted: Path, bert: Path) -> None:
    run = json.loads((fitted / "run" / "run.json").read_text())
    assert run["finished"] is True
    assert run["options"]["model"] == str(bert)
    assert run["options"]["data"] == str(fitted / "reviews.csv")
    assert run["data"] | {"kind": "classification", "classes": ["neg", "pos"], "items": 60} == run["data"]
    assert [run["data"][name] for name in ("train", "tuning", "test")] == [44, 4, 12]
    assert run["fit"]["num_steps"] == 4
    assert run["fit"]["kl_weight"] == FitConfig().kl_weight
    assert run["max_length"] == 24
    assert run["versions"]["torch"] == torch.__version__.partition("+")[0] or run["versions"]["torch"]
    assert sorted(path.name for path in fitted.iterdir()) == ["others.jsonl", "reviews.csv", "run"]
    assert not (fitted / "run" / "checkpoint.safetensors").exists()


def test_fit_says_what_it_does(fitted: Path, bert: Path, tmp_path: Path, capsys) -> None:
    common = [
        "fit",
        "--model",
        bert,
        "--data",
        fitted / "reviews.csv",
        *MOODS,
        *FAST,
        "--output",
        tmp_path / "run",
    ]
    assert bayeslora(*common) == 0
    captured = capsys.readouterr()
    output = " ".join(captured.out.split())
    posterior = load_run(tmp_path / "run", bert)
    counts = count_parameters(posterior.model, posterior.guide)
    assert captured.err == ""
    assert f"LoRA's {counts.lora:,}" in output
    assert f"{counts.extra:,} more than LoRA" in output or f"{-counts.extra:,} fewer than LoRA" in output
    assert "a tempered ELBO (KL weight 0.05)" in output
    assert f"Next: bayeslora evaluate {tmp_path / 'run'}" in captured.out.replace("\n", " ").replace(
        "  ", " "
    )


def test_peft_loads_the_folder(fitted: Path, bert: Path) -> None:
    base_model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2)
    peft_model = PeftModel.from_pretrained(base_model, fitted / "run")
    assert peft_model(torch.tensor([[2, 5, 3]])).logits.shape == (1, 2)


def by_hand(fitted: Path, bert: Path, num_draws: int = 16):
    """The splits of the run and its predictions for the test set, without the command."""
    _, tokenizer = load_base_model(str(bert), task_type="classification", num_labels=2)
    examples = load_file(fitted / "reviews.csv", text_column="review", label_column="mood")
    splits = split(examples, train=44, tuning=4, test=12, seed=0)
    posterior = load_run(fitted / "run", bert)

    def predict(examples):
        loader = make_loader(
            examples, tokenizer, batch_size=8, shuffle=False, group_by_length=True, max_length=24
        )
        return posterior.predict(loader, num_draws, seed=0)

    return splits, predict


def test_evaluate_writes_the_figures(fitted: Path, bert: Path, tmp_path: Path, capsys) -> None:
    others, target = fitted / "others.jsonl", tmp_path / "deep" / "metrics.json"
    assert bayeslora("evaluate", fitted / "run", "--num-draws", 16, "--shift", others, "--json", target) == 0
    written = json.loads(target.read_text())
    splits, predict = by_hand(fitted, bert)
    inside = predict(splits.test)
    outside = predict(load_file(others, text_column="review", label_column="mood"))
    assert list(written) == ["reviews", "others"]
    for row, prediction in zip(written.values(), (inside, outside), strict=True):
        expected = metrics.evaluate_log_probs(prediction.log_probs, prediction.labels)
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=1e-5)
        assert row["n"] == 12
    assert written["others"]["auroc_entropy"] == pytest.approx(metrics.auroc(inside.entropy, outside.entropy))
    output = capsys.readouterr()
    assert output.err == ""
    assert "tempered ELBO (KL weight 0.05)" in output.out
    assert f"{written['reviews']['nll']:.3f}" in output.out
    assert [path.name for path in target.parent.iterdir()] == ["metrics.json"]


def test_evaluate_fits_a_temperature_on_the_tuning_set(
    fitted: Path, bert: Path, tmp_path: Path, capsys
) -> None:
    target = tmp_path / "metrics.json"
    assert bayeslora("evaluate", fitted / "run", "--temperature", "--num-draws", 2, "--json", target) == 0
    splits, predict = by_hand(fitted, bert, num_draws=2)
    tuning, test = predict(splits.tuning), predict(splits.test)
    temperature = metrics.temperature_scale(tuning.log_probs, tuning.labels)
    scaled = (metrics.mean_log_probs(test.log_probs) / temperature).log_softmax(-1)
    row = json.loads(target.read_text())["reviews"]["scaled"]
    assert row["temperature"] == pytest.approx(temperature, rel=1e-3)
    assert row["nll"] == pytest.approx(metrics.evaluate_log_probs(scaled, test.labels)["nll"], rel=1e-3)
    assert "fitted on 4 tuning items" in capsys.readouterr().out


def test_evaluate_scores_another_file(fitted: Path, tmp_path: Path, capsys) -> None:
    rows = reviews(60)[:20]
    other = write(tmp_path / "again.jsonl", rows)
    assert bayeslora("evaluate", fitted / "run", "--data", other, "--json", tmp_path / "m.json") == 0
    assert json.loads((tmp_path / "m.json").read_text())["again"]["n"] == 20
    (note,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"bayeslora: note: \d+ of the 20 items of .*again.jsonl were trained on", note)


def test_report_is_written_with_its_arviz_file(fitted: Path, tmp_path: Path, capsys) -> None:
    page = tmp_path / "pages" / "report.html"
    shift = ["--shift", fitted / "others.jsonl"]
    assert bayeslora("report", fitted / "run", "--output", page, "--num-draws", 4, *shift) == 0
    assert sorted(path.name for path in page.parent.iterdir()) == ["report.html", "report.nc"]
    text = page.read_text()
    assert "bayesian-lora on" in text
    assert "others" in text
    assert str(page) in capsys.readouterr().out.replace("\n", "")


def test_draws_are_peft_folders(fitted: Path, bert: Path, tmp_path: Path) -> None:
    assert bayeslora("draws", fitted / "run", "--num", 2, "--output", tmp_path / "draws", "--seed", 3) == 0
    assert sorted(path.name for path in (tmp_path / "draws").iterdir()) == ["draw-000", "draw-001"]
    batch = {"input_ids": torch.tensor([[2, 5, 6, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    expected = load_run(fitted / "run", bert).predict([batch], num_draws=2, seed=3).log_probs
    for draw in range(2):
        base_model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2)
        peft_model = PeftModel.from_pretrained(base_model, tmp_path / "draws" / f"draw-{draw:03d}").eval()
        logits = peft_model(**batch).logits.log_softmax(-1)
        torch.testing.assert_close(logits, expected[draw], rtol=1e-4, atol=1e-5)
