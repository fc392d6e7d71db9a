"""Two processes on halves of a batch are one process on the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bayeslora_pyro.cli import main
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.ranks import joined, rank, sum_over_ranks, world_size
from bayeslora_pyro.tasks import load_base_model

from .cli_files import FAST, MOODS, bayeslora, bert, reviews, write

__all__ = ["bert"]

ROOT = Path(__file__).resolve().parents[1]
CLOSE = 1e-6


def start(*arguments: object, cwd: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(ROOT), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def distances(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    folder = tmp_path_factory.mktemp("ranks")
    processes = [start("-m", "tests.two_ranks", number, folder) for number in range(2)]
    for process in processes:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error
    (world, first), (_, second) = (json.loads((folder / f"rank-{k}.json").read_text()) for k in range(2))
    assert world == 2
    assert first == second  # both hold the same gradient, and the same posterior
    return first


@pytest.mark.parametrize("split", ["halves", "unequal"])
def test_fixed_noise_gives_the_gradient_of_the_whole_batch(split: str, distances: dict[str, float]) -> None:
    assert distances[f"{split}, fixed noise"] < CLOSE


@pytest.mark.parametrize("split", ["halves", "unequal"])
def test_each_process_has_draws_of_its_own(split: str, distances: dict[str, float]) -> None:
    assert distances[f"{split}, own noise"] < CLOSE
    assert distances[f"{split}, own noise as if fixed"] > 1e3 * CLOSE


def test_divergences_that_are_counted_twice_would_be_caught(distances: dict[str, float]) -> None:
    assert min(distances[f"{split}, DivergencePerRank"] for split in ("halves", "unequal")) > 1e3 * CLOSE


def test_likelihoods_scaled_to_the_local_batch_would_be_caught(distances: dict[str, float]) -> None:
    assert distances["unequal, LocalSizes"] > 1e3 * CLOSE
    assert distances["halves, LocalSizes"] < CLOSE  # where both have as many, there is nothing to catch


def test_a_fit_by_two_is_a_fit_with_two_batches_a_step(distances: dict[str, float]) -> None:
    assert distances["fit"] < CLOSE
    assert distances["history"] < 1e-4


def test_alone_there_is_nothing_to_sum() -> None:
    with joined():
        assert (rank(), world_size()) == (0, 1)
        sum_over_ranks(iter(()))


LAUNCH = ("-m", "accelerate.commands.launch", "--num_processes", "2", "--num_machines", "1", "--multi_gpu")


def test_accelerate_launches_the_command(bert: Path, tmp_path: Path) -> None:
    write(tmp_path / "reviews.csv", reviews(40))
    fit = ["fit", "--model", bert, "--data", tmp_path / "reviews.csv", *MOODS, *FAST, "--output"]
    launch = [*LAUNCH, "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    process = start(*launch, "-m", "bayeslora_pyro", *fit, tmp_path / "two", cwd=tmp_path)
    out, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert out.count("Saved to") == 1
    assert bayeslora(*fit, tmp_path / "one", "--accumulate", 2) == 0
    ours, wanted = (load(tmp_path / name, bert) for name in ("two", "one"))
    for row, other in zip(ours.history, wanted.history, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-4)


def load(folder: Path, bert: Path) -> Posterior:
    return Posterior.load(folder, load_base_model(str(bert), task_type="classification", num_labels=2)[0])


def test_other_commands_want_no_launcher(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "posterior_config.json").write_text("{}")
    record = {
        "format": 1,
        "finished": True,
        "options": {},
        "data": {},
        "num_draws": 2,
        "max_length": 9,
        "fit": {},
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["evaluate", str(tmp_path)]) == 2
    assert "evaluate runs in one process: call it without a launcher" in capsys.readouterr().err
