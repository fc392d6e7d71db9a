"""Laplace-LoRA through the command: fitted, scored each way, reported, drawn from; and what does not fit it."""

import json
from pathlib import Path
from typing import Any

import pytest

from .cli_files import MOODS, STARS, bayeslora, bert, fitted, llama, load_run, questions, write

__all__ = ["bert", "fitted", "llama"]

SHORT = ["--num-steps", 30, "--batch-size", 8, "--r", 2, "--method"]


@pytest.fixture
def command(fitted: Path, bert: Path, tmp_path: Path) -> list[Any]:
    return ["fit", "--model", bert, "--data", fitted / "reviews.csv", "--output", tmp_path / "run", *SHORT]


@pytest.mark.parametrize(
    ("method", "flags", "wanted"),
    [
        ("laplace-lora", [], {"structure": "kronecker", "chosen_by": "evidence"}),
        ("laplace-lora", ["--laplace.structure", "diagonal", "--laplace.precision", 3], {"precision": [3.0]}),
        ("laplace-lora", ["--laplace.max-dense", 4, "--laplace.rank", 3, "--laplace.sharing", "reduce"], {}),
        ("laplace-lora-last-layer", ["--laplace.per", "role"], {}),
    ],
)
def test_it_is_fitted_scored_reported_and_drawn_from(
    method: str, flags: list[Any], wanted: dict[str, Any], command: list[Any], bert: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert bayeslora(*command, method, *MOODS, *flags) == 0
    posterior = load_run(run, bert)
    assert wanted.items() <= posterior.metadata["laplace"].items()
    assert len(posterior.metadata["laplace"]["precision"]) == (2 if "role" in flags else 1)
    figures = {}
    for predictive in ("joint", "probit", "bridge", "weights"):
        assert bayeslora("evaluate", run, "--predictive", predictive, "--json", tmp_path / "m.json") == 0
        figures[predictive] = json.loads((tmp_path / "m.json").read_text())["reviews"]["nll"]
    assert len({*figures.values()}) == 4
    page = tmp_path / "report.html"
    assert bayeslora("report", run, "--output", page, "--num-draws", 30) == 0
    assert "evidence" in page.read_text()
    assert bayeslora("draws", run, "--num", 2, "--output", tmp_path / "draws") == 0


def test_numbers_and_choices_too(command: list[Any], llama: Path, tmp_path: Path) -> None:
    assert bayeslora(*command, "laplace-lora", *STARS) == 0
    assert bayeslora("evaluate", tmp_path / "run") == 0
    file = write(tmp_path / "quiz.jsonl", questions(40))
    chosen = ["fit", "--model", llama, "--data", file, "--output", tmp_path / "quiz", *SHORT, "laplace-lora"]
    assert bayeslora(*chosen) == 0
    assert bayeslora("evaluate", tmp_path / "quiz") == 0


@pytest.mark.parametrize(
    ("method", "flags", "message"),
    [
        ("lora", ["--laplace.rank", 3], "--laplace.rank does not fit --method lora"),
        ("tfb", ["--laplace.per", "role"], "--laplace.per does not fit --method tfb"),
        ("laplace-lora", ["--tfb.tolerance", 0.1], "--tfb.tolerance does not fit --method laplace-lora"),
        ("laplace-lora", ["--laplace.modules", "*.nothing"], "fits no adapted module"),
        ("laplace-lora", ["--laplace.per", "row"], "--laplace.per"),
        ("laplace-lora", ["--laplace.precision", -1], "precision should be positive"),
    ],
)
def test_what_does_not_fit_is_said(
    method: str, flags: list[Any], message: str, command: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bayeslora(*command, method, *MOODS, *flags) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_tfb_takes_its_tolerance(command: list[Any], bert: Path, tmp_path: Path) -> None:
    assert bayeslora(*command, "tfb", *MOODS, "--tfb.tolerance", 0.2, "--tfb.metric", "accuracy") == 0
    found = load_run(tmp_path / "run", bert).metadata["tfb"]
    assert (found["tolerance"], found["metric"]) == (0.2, "accuracy")


def test_texts_are_refused_before_the_fit(llama: Path, tmp_path: Path, capsys: Any) -> None:
    data, run = (
        write(tmp_path / "texts.jsonl", [{"text": f"the film is {k}"} for k in range(20)]),
        tmp_path / "run",
    )
    flags = ["--model", llama, "--data", data, "--text-column", "text", "--output", run]
    assert bayeslora("fit", *flags, *SHORT, "laplace-lora") == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith(
        "bayeslora: --method laplace-lora: likelihood=NextToken has no scores to linearise"
    )
    assert "choose another method" in message
    assert not run.exists()
