"""Ensembles and other methods through the command: fitted, resumed, replaced, scored, reported and drawn from."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bayeslora_pyro import Ensemble
from bayeslora_pyro.tasks import load_base_model

from .cli_files import MOODS, STARS, bayeslora, bert, fitted
from .test_cli_runs import interrupt_at

__all__ = ["bert", "fitted"]

SHORT = ["--num-steps", 4, "--batch-size", 8, "--r", 2]
MEMBERS = {
    "ensemble": (["--method", "ensemble"], 3),
    "checkpoint-ensemble": (["--method", "checkpoint-ensemble", "--snapshots", 2], 2),
    "mean field": (["--method", "bayesian-lora-mf", "--num-chains", 2], 2),
}


@pytest.fixture
def command(fitted: Path, bert: Path, tmp_path: Path) -> list[object]:
    data = ["--data", fitted / "reviews.csv"]
    return ["fit", "--model", bert, *data, *MOODS, *SHORT, "--output", tmp_path / "run"]


@pytest.mark.parametrize("case", MEMBERS)
def test_an_ensemble_is_fitted_scored_reported_and_drawn_from(
    case: str, command: list[object], bert: Path, tmp_path: Path, capsys
) -> None:
    flags, number = MEMBERS[case]
    run = tmp_path / "run"
    assert bayeslora(*command, *flags) == 0
    record = json.loads((run / "run.json").read_text())
    assert record["num_draws"] % number == 0
    assert record["parameters"]["head"] % number == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"head {record['parameters']['head']:,}" in printed
    assert sorted(path.name for path in run.iterdir()) == [
        *(f"chain-{k}" for k in range(number)),
        "ensemble.json",
        "run.json",
    ]
    base_model, _ = load_base_model(str(bert), task_type="classification", num_labels=2)
    by_hand = Ensemble.load(run, base_model)
    assert len(by_hand) == number

    assert bayeslora("evaluate", run, "--json", tmp_path / "m.json") == 0
    row = json.loads((tmp_path / "m.json").read_text())["reviews"]
    assert row["n"] == 12
    assert bayeslora("evaluate", run, "--num-draws", number + 1) == 2
    assert f"no multiple of the {number} members" in capsys.readouterr().err

    assert bayeslora("draws", run, "--num", number, "--output", tmp_path / "draws") == 0
    assert len(list((tmp_path / "draws").iterdir())) == number
    assert bayeslora("draws", run, "--num", number + 1, "--output", tmp_path / "more") == 2
    if case == "mean field":
        page = tmp_path / "report.html"
        assert bayeslora("report", run, "--output", page, "--num-draws", 4, "--no-khat") == 0
        assert page.exists()
    else:
        assert bayeslora("report", run) == 2
        assert "has no posterior to report on" in capsys.readouterr().err


def test_draws_of_an_ensemble_are_those_it_predicts_with(
    command: list[object], bert: Path, tmp_path: Path
) -> None:
    assert bayeslora(*command, "--method", "bayesian-lora-mf", "--num-chains", 2) == 0
    base_model, _ = load_base_model(str(bert), task_type="classification", num_labels=2)
    chains = Ensemble.load(tmp_path / "run", base_model)
    paths = chains.draws(4, tmp_path / "draws", seed=5)
    assert [path.name for path in paths] == [f"draw-{k:03d}" for k in range(4)]
    written = [load_file(path / "adapter_model.safetensors") for path in paths]
    values = torch.stack([next(t for name, t in each.items() if "lora_A" in name) for each in written])
    wanted = [member.weights(2, 5 + k) for k, member in enumerate(chains)]
    layers = torch.cat([weights[next(name for name in weights if name[0] == "A")] for weights in wanted])
    assert any(torch.equal(values, layers[:, index]) for index in range(layers.shape[1]))


def test_an_interrupted_ensemble_goes_on_to_the_same_numbers(
    command: list[object], tmp_path: Path, capsys, monkeypatch
) -> None:
    flags, run = ["--method", "lora", "--num-chains", 2], tmp_path / "run"
    assert bayeslora(*command[:-1], tmp_path / "whole", *flags) == 0
    with monkeypatch.context() as patch:
        interrupt_at(2, patch, times_before=1)
        assert bayeslora(*command, *flags) == 130
    assert "interrupted after step 2 of 4 of fit 2 of 2" in capsys.readouterr().err
    assert bayeslora("fit", "--resume", "--output", run) == 0
    for chain in ("chain-0", "chain-1"):
        name = f"{chain}/posterior.safetensors"
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not list(run.glob("checkpoint*"))


def test_a_run_that_replaces_another_leaves_nothing_of_it(command: list[object], tmp_path: Path) -> None:
    run = tmp_path / "run"
    for flags, wanted in (
        (["--num-chains", 2], {"chain-0", "chain-1", "ensemble.json", "run.json"}),
        (
            [],
            {
                "adapter_config.json",
                "adapter_model.safetensors",
                "posterior.safetensors",
                "posterior_config.json",
                "run.json",
            },
        ),
        (["--num-chains", 2], {"chain-0", "chain-1", "ensemble.json", "run.json"}),
    ):
        assert bayeslora(*command, "--method", "lora", "--overwrite", *flags) == 0
        assert {path.name for path in run.iterdir()} == wanted


@pytest.mark.parametrize("flags", [["--method", "mc-dropout", "--guide.rate", 0.3], ["--method", "tfb"]])
def test_methods_with_a_posterior_of_their_own(
    flags: list[object], command: list[object], tmp_path: Path, capsys
) -> None:
    run = tmp_path / "run"
    assert bayeslora(*command, *flags) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert ("the ELBO, not tempered" if "mc-dropout" in flags else "then a search for the noise") in printed
    assert bayeslora("evaluate", run, "--num-draws", 2) == 0
    page = tmp_path / "report.html"
    assert bayeslora("report", run, "--output", page, "--num-draws", 30) == 0
    assert ("there is no k-hat" in page.read_text()) == ("mc-dropout" in flags)
    config = json.loads((run / "posterior_config.json").read_text())
    if "mc-dropout" in flags:
        assert config["guide"]["config"]["rate"] == 0.3
    else:
        assert 1e-4 <= config["metadata"]["tfb"]["sigma"] <= 1


def test_a_regression_ensemble_is_in_the_units_of_the_targets(
    fitted: Path, bert: Path, tmp_path: Path
) -> None:
    data = ["--data", fitted / "reviews.csv", *STARS]
    flags = ["--method", "lora", "--num-chains", 2, "--output", tmp_path / "run"]
    assert bayeslora("fit", "--model", bert, *data, *SHORT, *flags) == 0
    assert bayeslora("evaluate", tmp_path / "run", "--json", tmp_path / "m.json") == 0
    assert json.loads((tmp_path / "m.json").read_text())["reviews"]["rmse"] < 50  # targets are about 105


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (
            ["--method", "checkpoint-ensemble"],
            ["--num-steps 4", "snapshots=5 needs num_steps of at least 10"],
        ),
        (["--method", "mc-dropout", "--guide.rate", 1.5], ["--guide.rate 1.5", "less than 1"]),
        (["--method", "lora", "--guide.rate", 0.5], ["--guide.rate does not fit --method lora"]),
        (["--method", "lora", "--num-chains", 0], ["--num-chains 0", "at least 1"]),
    ],
)
def test_bad_flags_are_named(flags: list[object], words: list[str], command: list[object], capsys) -> None:
    assert bayeslora(*command, *flags) == 2
    complaint = capsys.readouterr().err
    assert all(word in complaint for word in words), complaint
