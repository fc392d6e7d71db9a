"""What the command fits to what: files, classes, numbers, choices and texts, by each method."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from bayeslora_pyro import Choice, Posterior, metrics
from bayeslora_pyro.diagnostics import load_arviz
from bayeslora_pyro.diagnostics.arrays import datasets
from bayeslora_pyro.methods.blob import cycle_length
from bayeslora_pyro.tasks import load_base_model, load_file, make_loader, split

from .cli_files import FAST, MOODS, STARS, bayeslora, bert, fitted, llama, load_run, questions, reviews, write

__all__ = ["bert", "fitted", "llama"]


@pytest.mark.parametrize("name", ["data.csv", "data.jsonl", "data.jsonl.gz", "my.data.csv"])
def test_own_files_are_read(name: str, bert: Path, tmp_path: Path, monkeypatch) -> None:
    """Paths are relative to the working directory, which may be another one afterwards."""
    monkeypatch.chdir(tmp_path)
    bert = Path(os.path.relpath(bert))
    write(tmp_path / name, reviews(40))
    assert bayeslora("fit", "--model", bert, "--data", name, *MOODS, *FAST) == 0
    stem = "my.data" if name.startswith("my") else "data"
    run = tmp_path / "runs" / f"{stem}-bayesian-lora"
    assert json.loads((run / "run.json").read_text())["data"]["name"] == stem
    monkeypatch.chdir("/")
    assert bayeslora("evaluate", run, "--num-draws", 1) == 0


OTHER_METHODS = {
    "lora": ("maximum likelihood", 1),
    "bayesian-lora-mf": ("not tempered (KL weight 1)", 8),
    "blob": ("not tempered (KL weight 1)", 10),
}
"""What the output says, and the number of draws."""


@pytest.mark.parametrize("method", OTHER_METHODS)
def test_other_methods(method: str, fitted: Path, bert: Path, tmp_path: Path, capsys) -> None:
    words, num_draws = OTHER_METHODS[method]
    folder, steps = tmp_path / "run", ["--num-steps", 2, "--r", 2]
    arguments = ["--model", bert, "--data", fitted / "reviews.csv", *MOODS, *steps, "--method", method]
    assert bayeslora("fit", *arguments, "--output", folder, "--kl-weight", 1) == 0
    assert bayeslora("evaluate", folder, "--json", tmp_path / "m.json") == 0
    output = " ".join(capsys.readouterr().out.split())
    assert output.count(words) == 2
    assert ("0 more than LoRA" in output) == (method == "lora")
    assert f"{num_draws} draw" in output


def test_settings_reach_the_random_one_of_two_priors(fitted: Path, bert: Path, tmp_path: Path) -> None:
    flags = ["--method", "blob", "--prior.scale", "0.3", "--guide.scale", "0.01", "--num-steps", "1"]
    arguments = ["--model", bert, "--data", fitted / "reviews.csv", *MOODS, "--r", 2, *flags]
    assert bayeslora("fit", *arguments, "--output", tmp_path / "run") == 0
    posterior = load_run(tmp_path / "run", bert)
    assert posterior.model.priors["A"].config() == {"scale": 0.3, "width_scaled": False}
    assert posterior.model.priors["B"].latent is None
    assert posterior.guide.config()["scale"] == 0.01


def test_settings_of_the_method_depend_on_the_size_of_a_batch(
    fitted: Path, bert: Path, tmp_path: Path
) -> None:
    settings = {}
    for size in (4, 16):
        arguments = ["--model", bert, "--data", fitted / "reviews.csv", *MOODS, "--r", 2, "--num-steps", 1]
        flags = ["--method", "blob", "--batch-size", size, "--output", tmp_path / f"run{size}"]
        assert bayeslora("fit", *arguments, *flags, *([] if size == 4 else ["--no-draw-per-item"])) == 0
        settings[size] = json.loads((tmp_path / f"run{size}" / "run.json").read_text())
    num_data = settings[4]["data"]["train"]
    cycles = {size: run["fit"]["kl_cycle"] for size, run in settings.items()}
    assert cycles == {size: cycle_length(num_data, size) for size in (4, 16)}
    assert [run["fit"]["draw_per_item"] for run in settings.values()] == [True, False]


def test_settings_reach_the_parts(fitted: Path, bert: Path, tmp_path: Path) -> None:
    flags = "--transform planar --depth 2 --guide.noise-scale 0.2 --prior.learn-scale --kl-weight 0.5 --max-grad-norm 1"
    arguments = ["--model", bert, "--data", fitted / "reviews.csv", *MOODS, *FAST, *flags.split()]
    more = [
        "--lora-alpha",
        4,
        "--target-modules",
        "query",
        "key",
        "--head-learning-rate",
        "2e-3",
        "--dropout",
    ]
    assert bayeslora("fit", *arguments, *more, "--seed", 5, "--output", tmp_path / "run") == 0
    posterior = load_run(tmp_path / "run", bert)
    guide, prior = posterior.guide.config(), posterior.model.priors["AB"].config()
    assert guide | {"transform": "planar", "depth": 2, "noise_scale": 0.2, "seed": 5} == guide
    assert prior | {"rows": 3, "cols": 3, "learn_scale": True} == prior
    fit = posterior.metadata["fit"]
    assert fit | {"kl_weight": 0.5, "max_grad_norm": 1.0, "head_learning_rate": 2e-3, "dropout": True} == fit
    lora = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (lora["r"], lora["lora_alpha"], sorted(lora["target_modules"])) == (2, 4, ["key", "query"])


def test_regression_is_in_the_units_of_the_target(bert: Path, tmp_path: Path, capsys) -> None:
    data, shift = write(tmp_path / "stars.csv", reviews(60)), write(tmp_path / "more.csv", reviews(9, seed=1))
    folder = tmp_path / "run"
    assert bayeslora("fit", "--model", bert, "--data", data, *STARS, *FAST, "--output", folder) == 0
    assert bayeslora("evaluate", folder, "--num-draws", 3, "--json", tmp_path / "m.json") == 0
    row = json.loads((tmp_path / "m.json").read_text())["stars"]
    assert {"coverage_50", "coverage_95", "mae", "n", "nll", "rmse", "spearman", "ause"} <= set(row)
    assert 4 < row["rmse"] < 7  # the targets are about 100 and 110: the mean of both is off by 5
    assert 2 < row["nll"] < 4
    target = json.loads((folder / "run.json").read_text())["data"]["target"]
    assert 102 < target["mean"] < 109
    assert bayeslora("report", folder, "--num-draws", 3, "--shift", shift) == 0
    output = capsys.readouterr()
    assert "RMSE" in output.out
    assert output.err == ""
    page = (folder / "report.html").read_text()
    for shown in (
        f"{row['rmse']:.3g}",
        f"{row['mae']:.3g}",
        f"{row['nll']:.3f}",
        f"{row['coverage_90']:.1%}",
    ):
        assert f"<td>{shown}</td>" in page
    assert "more" in page
    observed = datasets(load_arviz(folder / "report.nc"))["observed_data"]["y"].values
    assert len(observed) == 12
    assert set(observed.round(4)) <= {round(each["stars"], 4) for each in reviews(60)}


def test_regression_without_a_test_set_is_reported_without_predictions(
    bert: Path, tmp_path: Path, capsys
) -> None:
    data, folder = write(tmp_path / "stars.csv", reviews(40)), tmp_path / "run"
    run = ["--model", bert, "--data", data, *STARS, *FAST, "--test", 0, "--output", folder]
    assert bayeslora("fit", *run) == 0
    assert bayeslora("report", folder, "--num-draws", 3) == 0
    assert "without labelled predictions" in (folder / "report.html").read_text()
    capsys.readouterr()
    for command, cure in (("evaluate", "give a file with --data"), ("report", "leave out --shift")):
        assert bayeslora(command, folder, "--shift", data) == 2
        (message,) = capsys.readouterr().err.splitlines()
        assert message.startswith(
            f"bayeslora: {folder} has no test set (it was fitted with --test 0): {cure}"
        )


def test_multiple_choice_with_a_decoder(llama: Path, tmp_path: Path, capsys) -> None:
    data = write(tmp_path / "quiz.jsonl", questions(40))
    folder = tmp_path / "run"
    assert bayeslora("fit", "--model", llama, "--data", data, *FAST, "--output", folder) == 0
    shift = write(tmp_path / "other.jsonl", questions(9, seed=1))
    assert bayeslora("evaluate", folder, "--shift", shift, "--json", tmp_path / "m.json") == 0
    written = json.loads((tmp_path / "m.json").read_text())
    assert {name: row["n"] for name, row in written.items()} == {"quiz": 8, "other": 8}
    assert 0 < written["quiz"]["nll"] < 3
    assert bayeslora("report", folder, "--num-draws", 3, "--no-khat") == 0
    assert bayeslora("draws", folder, "--num", 1) == 0
    assert (folder / "draws" / "draw-000" / "adapter_config.json").is_file()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("scoring", ["sum", "mean", "letters", None])
def test_choices_are_scored_as_asked(scoring: str | None, llama: Path, tmp_path: Path) -> None:
    rows = [{**row, "choices": [f"{row['choices'][0]} film", *row["choices"][1:]]} for row in questions(40)]
    data, folder = write(tmp_path / "quiz.jsonl", rows), tmp_path / "run"
    fit = ["fit", "--model", llama, "--data", data, *FAST, "--output", folder]
    assert bayeslora(*fit, *([] if scoring is None else ["--choice-scoring", scoring])) == 0
    assert bayeslora("evaluate", folder, "--num-draws", 2, "--json", tmp_path / "m.json") == 0

    base_model, tokenizer = load_base_model(str(llama), task_type="choice")
    posterior = Posterior.load(folder, base_model)
    letters = tuple(tokenizer.convert_tokens_to_ids(list("ABC"))) if scoring == "letters" else None
    wanted = {"label_tokens": letters, "length_normalised": scoring in ("mean", None)}
    assert posterior.model.likelihood.config() == wanted
    test = split(load_file(data), train=0, tuning=4, test=8, seed=0).test
    form = "label_tokens" if scoring == "letters" else "options"
    loader = make_loader(test, tokenizer, batch_size=8, shuffle=False, max_length=48, form=form)
    figures = {}
    for likelihood in (Choice(**wanted), Choice(letters, length_normalised=not wanted["length_normalised"])):
        posterior.model.likelihood = likelihood
        prediction = posterior.predict(loader, num_draws=2)
        figures[likelihood] = metrics.nll(prediction.log_probs, prediction.labels)
    found = json.loads((tmp_path / "m.json").read_text())["quiz"]["nll"]
    right, other = figures.values()
    assert found == pytest.approx(right, abs=1e-5)
    if scoring != "letters":  # a letter is one token, with nothing to normalise
        assert found != pytest.approx(other, abs=1e-5)


def test_plain_text(llama: Path, tmp_path: Path) -> None:
    data = write(tmp_path / "story.jsonl", [{"text": row["review"]} for row in reviews(40)])
    assert bayeslora("fit", "--model", llama, "--data", data, *FAST, "--output", tmp_path / "run") == 0
    assert bayeslora("evaluate", tmp_path / "run", "--json", tmp_path / "m.json") == 0
    row = json.loads((tmp_path / "m.json").read_text())["story"]
    assert row["perplexity"] == pytest.approx(torch.tensor(row["nll"]).exp().item(), rel=1e-4)
    assert 3 < row["nll"] < 8  # 214 tokens: log 214 is 5.4
    assert bayeslora("report", tmp_path / "run", "--num-draws", 3) == 0
    page = (tmp_path / "run" / "report.html").read_text()
    shown = float(re.search(r"predictive log-likelihood of a text is (-[\d.]+) nats", page)[1])
    assert shown == pytest.approx(-row["nll"] * row["tokens"] / row["n"], rel=0.01)
