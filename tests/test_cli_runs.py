"""Runs that are interrupted, resumed, configured by a file, or replaced."""

import json
import signal
from pathlib import Path

import yaml

from bayeslora_pyro import FitConfig

from .cli_files import FAST, MOODS, bayeslora, bert, fitted

__all__ = ["bert", "fitted"]


def interrupt_at(step: int, monkeypatch, times_before: int = 0) -> None:
    """Presses Ctrl-C in the middle of a step, once a run has come to it so many times before."""
    weight_at, times = FitConfig.kl_weight_at, []

    def press(config: FitConfig, at: int) -> float:
        times.extend([at] if at == step else [])
        if at == step and len(times) > times_before:
            signal.raise_signal(signal.SIGINT)
        return weight_at(config, at)

    monkeypatch.setattr(FitConfig, "kl_weight_at", press)


def test_resumed_run_gives_the_same_numbers(
    fitted: Path, bert: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
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
    with monkeypatch.context() as patch:
        interrupt_at(2, patch)
        assert bayeslora(*common) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == (
        f"bayeslora: interrupted after step 2 of 4; to go on: bayeslora fit --resume --output {tmp_path / 'run'}"
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint.safetensors",
        "run.json",
    ]
    assert bayeslora("evaluate", tmp_path / "run") == 2
    assert "holds an interrupted fit" in capsys.readouterr().err
    assert bayeslora("fit", "--resume", "--output", tmp_path / "run") == 0
    for name in ("posterior.safetensors", "adapter_model.safetensors", "posterior_config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (fitted / "run" / name).read_bytes(), name
    assert bayeslora("fit", "--resume", "--output", tmp_path / "run") == 0
    assert "there is nothing to resume" in capsys.readouterr().out


def test_interrupt_before_the_fit_leaves_nothing(
    fitted: Path, bert: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    def press(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("bayeslora_pyro.cli.language.load_base_model", press)
    arguments = ["--model", bert, "--data", fitted / "reviews.csv", *MOODS, "--output", tmp_path / "run"]
    assert bayeslora("fit", *arguments) == 130
    assert capsys.readouterr().err == "bayeslora: interrupted\n"
    assert list(tmp_path.iterdir()) == []


def test_configuration_file_equals_flags(fitted: Path, bert: Path, tmp_path: Path) -> None:
    config = {
        "model": str(bert),
        "data": str(fitted / "reviews.csv"),
        "text_column": "review",
        "label-column": "mood",
        "num_steps": 99,
        "batch_size": 8,
        "r": 2,
        "prior": {"rows": 3, "cols": 3},
    }
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
    arguments = ["--config", tmp_path / "fit.yaml", "--num-steps", 4, "--output", tmp_path / "run"]
    assert bayeslora("fit", *arguments) == 0
    for name in ("posterior.safetensors", "posterior_config.json"):
        assert (tmp_path / "run" / name).read_bytes() == (fitted / "run" / name).read_bytes(), name
    evaluation = {"run": str(tmp_path / "run"), "num_draws": 2, "json": str(tmp_path / "m.json")}
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(evaluation))
    assert bayeslora("evaluate", "--config", tmp_path / "evaluate.yaml") == 0
    assert "reviews" in json.loads((tmp_path / "m.json").read_text())


def test_overwrite_replaces_a_run(fitted: Path, bert: Path, tmp_path: Path) -> None:
    common = ["--model", bert, "--data", fitted / "reviews.csv", *MOODS, *FAST, "--output", tmp_path / "run"]
    assert bayeslora("fit", *common) == 0
    (tmp_path / "run" / "notes.txt").write_text("mine")
    assert bayeslora("fit", *common, "--overwrite", "--seed", 1) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["options"]["seed"] == 1
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
