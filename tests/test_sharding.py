"""A base model in two parts, in two processes, gives the numbers of one that is whole; and is in two parts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bayeslora_pyro.adapters import sharding
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.training import shard_base

from .cli_files import FAST, MOODS, bayeslora, bert, load_run, reviews, write
from .test_ranks import CLOSE, start
from .tiny import tiny_bert
from .two_ranks import batches
from .two_shards import BASES

__all__ = ["bert"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes have left what they found, and a posterior over each base model."""
    place = tmp_path_factory.mktemp("shards")
    processes = [start("-m", "tests.two_shards", number, place) for number in range(2)]
    for process in processes:
        _, error = process.communicate(timeout=200)
        assert process.returncode == 0, error
    return place


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Any]:
    first, second = (json.loads((folder / f"rank-{k}.json").read_text()) for k in range(2))
    assert first == second  # both hold the same gradient, the same posterior, and parts of the same size
    return first


@pytest.mark.parametrize("name", BASES)
def test_each_process_holds_half_of_the_base_model(name: str, found: dict[str, Any]) -> None:
    assert found[name]["share"] == pytest.approx(0.5, abs=0.01)
    assert found[name]["share afterwards"] == found[name]["share"]
    assert found[name]["divided"] == []  # of what is trained, nothing


@pytest.mark.parametrize(("name", "num_blocks"), [("bert", 2), ("llama", 3)])
def test_one_block_at_a_time_is_gathered(name: str, num_blocks: int, found: dict[str, Any]) -> None:
    blocks = found[name]["share of blocks"]
    whole = 1 - blocks + blocks / num_blocks  # what lies outside the blocks, and one of them
    assert found[name]["share at most"] == pytest.approx(whole + (1 - whole) / 2, abs=0.01)


@pytest.mark.parametrize("way", ["whole batch", "halves", "unequal", "checkpointed", "accelerate"])
@pytest.mark.parametrize("name", BASES)
def test_fixed_noise_gives_the_gradient_of_the_whole_model(
    name: str, way: str, found: dict[str, Any]
) -> None:
    assert found[name][way] < CLOSE


@pytest.mark.parametrize("name", BASES)
def test_a_fit_is_that_over_the_whole_model(name: str, found: dict[str, Any]) -> None:
    assert found[name]["fit"] < CLOSE
    assert found[name]["history"] < 1e-4


@pytest.mark.parametrize("name", BASES)
def test_predictions_are_those_of_the_whole_model(name: str, found: dict[str, Any]) -> None:
    ours, wanted = (torch.tensor(found[name][key]) for key in ("predicted", "wanted"))
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("name", BASES)
def test_what_was_saved_loads_over_a_whole_model(name: str, found: dict[str, Any], folder: Path) -> None:
    whole = BASES[name]().unload()
    loaded = Posterior.load(folder / name, whole)
    probabilities = loaded.predict(batches()[:2], num_draws=4).log_probs
    torch.testing.assert_close(probabilities.float(), torch.tensor(found[name]["predicted"]))


def test_a_folder_of_another_base_model_is_refused(folder: Path, found: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is not the one that the posterior was fitted on"):
        Posterior.load(folder / "bert", tiny_bert(seed=1).unload())


@pytest.mark.parametrize("part", ["generate", "embeddings"])
def test_parts_of_a_model_run_by_themselves(part: str, found: dict[str, Any]) -> None:
    assert found["alone"][part] < CLOSE


def test_faults_would_be_caught(found: dict[str, Any]) -> None:
    assert found["faults"]["divergence per rank"] > 1e3 * CLOSE
    assert [name.rpartition(".")[2] for name in found["faults"]["head divided"]] == ["weight", "bias"]


@pytest.mark.parametrize(
    ("fault", "cure"),
    [
        ("once", "call shard_base once"),
        ("same", "load the same files"),
        ("quantised", "(torch.uint8): load the base model without quantization"),
        ("objective", "leave FSDP out of the configuration of Accelerate"),
    ],
)
def test_complaints_name_the_cure(fault: str, cure: str, found: dict[str, Any]) -> None:
    assert cure in found["complaints"][fault]


def test_one_process_has_nobody_to_share_with() -> None:
    with pytest.raises(ValueError, match=r"several processes.*start them with torchrun"):
        shard_base(tiny_bert())


def test_older_torch_is_refused_on_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "world_size", lambda: 2)
    monkeypatch.delattr(torch.cpu.Stream, "record_event", raising=False)
    with pytest.raises(ValueError, match=r"needs torch 2\.7 or later"):
        shard_base(tiny_bert())


def test_a_base_model_alone_is_no_peft_model() -> None:
    with pytest.raises(TypeError, match="get_peft_model"):
        shard_base(tiny_bert().unload())


def test_torchrun_starts_the_command(bert: Path, tmp_path: Path) -> None:
    write(tmp_path / "reviews.csv", reviews(40))
    fit = ["fit", "--model", bert, "--data", tmp_path / "reviews.csv", *MOODS, *FAST, "--output"]
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    # Without the dashes torchrun takes --r, the rank of LoRA, for one of its own flags.
    process = start(*launch, "-m", "--", "bayeslora_pyro", *fit, tmp_path / "two", "--shard", cwd=tmp_path)
    out, error = process.communicate(timeout=200)
    assert process.returncode == 0, error
    assert out.count("Saved to") == 1
    assert bayeslora(*fit, tmp_path / "one", "--accumulate", 2) == 0
    ours, wanted = (load_run(tmp_path / name, bert) for name in ("two", "one"))
    for row, other in zip(ours.history, wanted.history, strict=True):
        assert row == pytest.approx(other, rel=1e-4, abs=1e-4)
    assert bayeslora("evaluate", tmp_path / "two", "--num-draws", 2) == 0


@pytest.mark.parametrize(
    ("processes", "more", "message"),
    [
        ("1", [], "--shard needs several processes: start them with torchrun"),
        ("2", ["--quantization", "4bit"], "--shard cannot divide a base model in 4bit"),
    ],
)
def test_the_command_says_what_it_needs(
    processes: str, more: list[str], message: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    fit = ["fit", "--model", "minilm", "--task", "sentiment", "--output", tmp_path / "run", "--shard"]
    assert bayeslora(*fit, *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
