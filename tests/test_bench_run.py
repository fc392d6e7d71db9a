"""The benchmark from end to end on tiny base models: fits, kills, and the same numbers afterwards."""

import dataclasses
import gzip
import json
from pathlib import Path

import pytest
import torch

from bayeslora_pyro import METHODS
from bayeslora_pyro.bench import fitting, predictions, working
from bayeslora_pyro.bench.cells import Cell
from bayeslora_pyro.bench.storing import read_cell, read_cells
from bayeslora_pyro.bench.tiers import Job, select_jobs
from bayeslora_pyro.bench.working import Task, do
from bayeslora_pyro.runs import Run

from .cli_files import bayeslora, bert, llama, questions

__all__ = ["bert", "llama"]

SMALL = {"num_steps": 3, "num_tuning": 8, "num_test": 12, "num_shift": 4, "dtype": "float32"}
SCIENCE = ("openbookqa", "arc_challenge", "mmlu_chemistry", "mmlu_physics")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions of two or three choices under the names of the science sets."""
    folder = tmp_path_factory.mktemp("data")
    for place, name in enumerate(SCIENCE):
        for part, count in (("train", 40), ("test", 14)):
            rows = questions(count, seed=2 * place + (part == "test"))
            for index, row in enumerate(rows):  # of different lengths
                row["question"] += " the film" * (index % 4)
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}.{part}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def choice_job(llama: Path, method: str, tier: str = "cpu", **changes: object) -> Job:
    """A cell of questions on the tiny decoder."""
    options = {"tasks": ["openbookqa"], "models": [str(llama)], "sizes": [16], "seeds": [0]}
    jobs = select_jobs(tier, methods=[method], **options, **(SMALL | changes))
    return jobs[0]


def done(job: Job, output: Path, data_dir: Path):
    """Does a cell in this process, and reads it."""
    do(Task(job, output, data_dir, "cpu"))
    return read_cell(output / "cells" / job.cell.name)


def same(ours, theirs) -> bool:
    ours, theirs = ours.raw(), theirs.raw()
    return set(ours) == set(theirs) and all(
        torch.equal(ours[name].log_probs, own.log_probs) for name, own in theirs.items()
    )


class TestChoices:
    def test_the_base_model_is_lora_before_its_first_step(self, llama, data_dir, tmp_path) -> None:
        stored = done(choice_job(llama, "base"), tmp_path, data_dir)
        raw = stored.raw()
        assert set(raw) == {"tuning", "test", "arc_challenge", "mmlu_chemistry", "mmlu_physics"}
        assert raw["test"].log_probs.shape == (1, 12, 3)
        assert stored.costs["step"] is None
        assert stored.costs["parameters"]["total"] == 0
        frozen = choice_job(llama, "lora")
        frozen = Job(frozen.cell, frozen.protocol.changed(rate_scale=1e-30))
        unmoved = done(frozen, tmp_path / "frozen", data_dir).raw()
        torch.testing.assert_close(raw["test"].log_probs, unmoved["test"].log_probs)

    def check_order(self, llama: Path, data_dir: Path, output: Path) -> None:
        """Each item has as many choices as its example."""
        job = choice_job(llama, "base")
        sets = working.load_sets(job.cell, job.protocol, data_dir)
        raw = done(job, output, data_dir).raw()
        for name, examples in sets.evaluated.items():
            assert tuple(raw[name].labels.tolist()) == examples.labels
            sizes = raw[name].log_probs[0].isfinite().sum(-1).tolist()
            assert sizes == [len(choices) for choices in examples.choices]

    def test_items_come_in_the_order_of_their_examples(self, llama, data_dir, tmp_path) -> None:
        self.check_order(llama, data_dir, tmp_path)

    def test_items_left_in_the_order_of_their_lengths_are_caught(
        self, llama, data_dir, tmp_path, monkeypatch
    ) -> None:
        monkeypatch.setattr(predictions, "_in_order", lambda log_probs, loader: log_probs)
        with pytest.raises(AssertionError):
            self.check_order(llama, data_dir, tmp_path)

    def test_a_fit_that_was_killed_goes_on_to_the_same_numbers(
        self, llama, data_dir, tmp_path, monkeypatch
    ) -> None:
        job = choice_job(llama, "bayesian-lora-mf")
        whole = done(job, tmp_path / "whole", data_dir)
        real, killed = Run.take_step, tmp_path / "killed"

        def take_step(run, batches):
            if run.step == 2:
                raise KeyboardInterrupt
            return real(run, batches)

        with monkeypatch.context() as patched:
            patched.setattr(Run, "take_step", take_step)
            with pytest.raises(KeyboardInterrupt):
                done(job, killed, data_dir)
        assert not (killed / "cells").exists()
        assert len(list((killed / "fits").iterdir())) == 1
        resumed = done(job, killed, data_dir)
        assert same(resumed, whole)
        assert resumed.rows == whole.rows
        assert (whole.costs["fit_seconds"] is None, resumed.costs["fit_seconds"] is None) == (False, True)

    @pytest.mark.parametrize("method", ["tfb", "laplace-lora"])
    def test_a_shared_fit_gives_the_numbers_of_an_own_one(self, method, llama, data_dir, tmp_path) -> None:
        own = done(choice_job(llama, method), tmp_path / "own", data_dir)
        done(choice_job(llama, "lora"), tmp_path / "shared", data_dir)
        shared = done(choice_job(llama, method), tmp_path / "shared", data_dir)
        assert same(own, shared)
        assert (shared.costs["fit_seconds"], len(list((tmp_path / "shared" / "fits").iterdir()))) == (None, 1)
        other = done(choice_job(llama, "map"), tmp_path / "shared", data_dir)
        assert not same(other, shared)

    def test_the_published_protocol_runs_on_a_small_model(self, llama, data_dir, tmp_path) -> None:
        """Letters in the prompt, `lm_head` adapted, step sizes that warm up."""
        job = choice_job(llama, "blob", tier="gpu")
        assert job.protocol.scoring == "letters"
        stored = done(job, tmp_path, data_dir)
        raw = stored.raw()
        sets = working.load_sets(job.cell, job.protocol, data_dir)
        assert raw["test"].log_probs.shape == (16, 12, 3)
        assert raw["test"].mean.shape == (1, 12, 3)
        finite = raw["test"].log_probs[3].isfinite().sum(-1).tolist()
        assert finite == [len(choices) for choices in sets.evaluated["test"].choices]
        torch.testing.assert_close(raw["test"].log_probs.exp().sum(-1), torch.ones(16, 12))
        assert stored.record["method"]["fit"]["warmup"] == 0.06
        assert {row["draws"] for row in stored.rows} == {0, 1, 4, 10, 16}

    def test_published_quirks_leave_letters_to_items_without_such_a_choice(
        self, llama, data_dir, tmp_path
    ) -> None:
        raw = done(choice_job(llama, "base", tier="gpu", blob_compat=True), tmp_path, data_dir).raw()
        assert bool(raw["test"].log_probs.isfinite().all())

    def test_published_quirks_score_arc_over_five_letters(self, llama, data_dir, monkeypatch) -> None:
        monkeypatch.setattr(fitting, "label_token_ids", lambda _, count: range(count))
        job = choice_job(llama, "base", tier="gpu")
        sets = working.load_sets(job.cell, job.protocol, data_dir)
        for task, compat, count in (("arc_easy", True, 5), ("arc_easy", False, 3), ("openbookqa", True, 3)):
            cell = Cell(task, str(llama), "base", 16, 0)
            tokens = fitting._label_tokens(cell, job.protocol.changed(blob_compat=compat), sets, None)
            assert len(tokens) == count


@pytest.mark.parametrize(("scoring", "normalised"), [("mean", True), ("options", False)])
def test_options_are_scored_as_the_protocol_says(llama, data_dir, scoring, normalised) -> None:
    job = choice_job(llama, "base")
    assert job.protocol.scoring == "mean"  # of the `cpu` tier
    protocol = dataclasses.replace(job.protocol, scoring=scoring)
    ground = fitting.prepare(job.cell, protocol, working.load_sets(job.cell, protocol, data_dir))
    assert ground.likelihood.config() == {"label_tokens": None, "length_normalised": normalised}


def test_a_quantised_base_model_is_asked_for(llama, data_dir, tmp_path, monkeypatch) -> None:
    asked: dict[str, object] = {}
    real = fitting.load_base_model

    def load_base_model(name, *, quantization, **options):
        asked.update(name=name, quantization=quantization)
        return real(name, **options)

    monkeypatch.setattr(fitting, "load_base_model", load_base_model)
    job = choice_job(llama, "base", tier="gpu")
    cell = dataclasses.replace(job.cell, model=f"{llama}@4bit")
    stored = done(Job(cell, job.protocol), tmp_path, data_dir)
    assert asked == {"name": str(llama), "quantization": "4bit"}
    assert stored.cell.name == "openbookqa_tiny-llama-4bit_16_base_seed0"


def test_the_command_does_what_is_left_and_reports_it(bert, tmp_path, capsys) -> None:
    output = tmp_path / "bench"
    common = [
        "bench",
        "--tier",
        "smoke",
        "--models",
        bert,
        "--num-steps",
        4,
        "--workers",
        2,
        "--output",
        output,
    ]
    assert bayeslora(*common, "--methods", "lora", "blob", "--list") == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed == [
        "2 cells, 0 of them done.",
        *(f"sentiment_tiny-bert_16_{m}_seed0" for m in ("lora", "blob")),
    ]
    assert bayeslora(*common, "--methods", "lora", "blob") == 0
    assert "2 cells, 0 of them done." in capsys.readouterr().out
    (page,) = (output / "report").glob("tables.md")
    before = page.read_bytes()
    assert not (output / "fits").exists()
    assert [stored.record["machine"]["threads"] for stored in read_cells(output)] == [1, 1]
    assert all(stored.costs["peak_memory_mb"] > 50 for stored in read_cells(output))

    assert bayeslora(*common, "--methods", "lora", "blob", "base") == 0  # a classifier has no base
    assert "2 cells, 2 of them done." in capsys.readouterr().out
    assert page.read_bytes() == before
    assert bayeslora("bench", "report", output) == 0
    assert page.read_bytes() == before

    assert bayeslora(*common[:5], *common[7:], "--methods", "lora", "--num-steps", 5) == 2
    assert "num_steps=4, and now it is 5" in capsys.readouterr().err
    assert bayeslora("bench", "report", tmp_path / "nowhere") == 2
    assert bayeslora(*common, "--methods", "nothing") == 2
    assert f"use some of base, {', '.join(METHODS)}" in " ".join(capsys.readouterr().err.split())
