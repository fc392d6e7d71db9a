"""The benchmarks run, print what they promise, and compare the same mathematics on both sides."""

import argparse
import json
import runpy
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from bayeslora_pyro import TRANSFORMS, BayesianLora, FlowGuide, MeanFieldGuide
from bayeslora_pyro.isolation import private_pyro

from .tiny import tiny_bert, tiny_llama

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = ("train_step", "draws", "predict")
TINY = ("tiny", "tiny-decoder")
EVERYWHERE = {
    "ratio",
    "quartiles",
    "ours_ms",
    "plain_ms",
    "device",
    "threads",
    "versions",
    "date",
    "guide",
    "bar",
}

pytestmark = pytest.mark.usefixtures("scripts_by_name")


@pytest.fixture
def scripts_by_name(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lets the scripts import each other, as Python does for the folder of a script that it runs."""
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("cases", "timing", "flows", "prefix", "generate", "compile", "packing", *SCRIPTS):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield
    for name in ("cases", "timing", "flows", "prefix", "generate", "compile", "packing", *SCRIPTS):
        sys.modules.pop(name, None)


def run(script: str, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--repeats", "2", "--device", "cpu", *arguments])
    runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")


def load(name: str) -> ModuleType:
    return __import__(name)


@pytest.mark.parametrize(("guide", "models"), [("flow", TINY), ("mean_field", TINY[:1])])
@pytest.mark.parametrize("script", SCRIPTS)
def test_json_is_one_object(script, guide, models, monkeypatch, capsys):
    run(script, "--json", "--guide", guide, "--model", *models, monkeypatch=monkeypatch)
    rows = json.loads(capsys.readouterr().out)
    assert tuple(rows) == models
    for row in rows.values():
        assert row.keys() >= EVERYWHERE | ({"loop"} if script == "draws" else set())
        assert row["guide"] == guide
        low, high = row["quartiles"]
        assert 0 < low <= row["ratio"] <= high
        assert row["ours_ms"] > 0 < row["plain_ms"]


@pytest.mark.parametrize(("script", "models"), [("prefix", TINY), ("generate", TINY[1:])])
def test_draws_that_share_are_held_against_plain_peft(script, models, monkeypatch, capsys):
    run(script, "--json", "--model", *models, monkeypatch=monkeypatch)
    rows = json.loads(capsys.readouterr().out)
    assert tuple(rows) == models
    for row in rows.values():
        assert row.keys() >= EVERYWHERE
        assert (
            row["adapted_layers"] == 1
            if script == "prefix"
            else (row["prompt_tokens"], row["new_tokens"]) == (16, 64)
        )


def test_compiled_blocks_are_held_against_themselves():
    script = load("compile")
    script.COMPILER = {
        "backend": "eager"
    }  # quick, where the usual one takes half a minute and a C++ compiler
    options = argparse.Namespace(device="cpu", clock="wall", guide="mean_field", repeats=2)
    row = script.measure(load("cases").CASES["tiny"]("cpu"), options)
    assert row["first_ms"] > row["ours_ms"] > 0 < row["ratio"]


def test_flows_has_a_ratio_for_every_flow(monkeypatch, capsys):
    names = ("affine_autoregressive", "permute", "planar")  # which stand for all rows of the table
    for name in TRANSFORMS.keys() - set(names):
        monkeypatch.delitem(TRANSFORMS, name)
    run("flows", "--json", "--model", "tiny-decoder", monkeypatch=monkeypatch)
    row = json.loads(capsys.readouterr().out)["tiny-decoder"]
    assert row.keys() >= EVERYWHERE
    assert tuple(row["flows"]) == names
    assert row["ratio"] == row["flows"][row["slowest"]]["ratio"]
    assert row["ratio"] == max(figures["ratio"] for figures in row["flows"].values())
    run("flows", "--model", "tiny-decoder", monkeypatch=monkeypatch)
    table = capsys.readouterr().out
    assert all(f"  {name} " in table for name in names)


def test_laplace_is_held_against_training_and_against_laplace_torch(monkeypatch, capsys, recwarn):
    run("laplace", "--json", "--model", *TINY, monkeypatch=monkeypatch)
    rows = json.loads(capsys.readouterr().out)
    for row in rows.values():
        assert row.keys() >= EVERYWHERE
    assert rows["tiny"]["laplace_torch"]["ratio"] > 0
    assert "laplace_torch" not in rows["tiny-decoder"]  # whose likelihood it does not know


def test_table_names_the_setting(monkeypatch, capsys):
    run("draws", "--model", "tiny", monkeypatch=monkeypatch)
    table = capsys.readouterr().out
    assert all(word in table for word in ("tiny: ratio", "quartiles", "device", "threads", "torch"))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--repeats", "1"], "use 2 or more"),
        (["--clock", "cpu", "--threads", "2"], "--threads 1"),
        (["--model", "gpt"], "invalid choice"),
    ],
)
def test_bad_arguments(arguments, complaint, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run("draws", *arguments, monkeypatch=monkeypatch)
    assert complaint in capsys.readouterr().err


def test_ratio_is_that_of_neighbours():
    ours, theirs = (
        [1.1, 33.0, 10.0],
        [1.0, 30.0, 2.0],
    )  # of which two pairs were timed on a machine ten times slower
    assert load("timing").ratios(ours, theirs)["ratio"] == pytest.approx(1.1)
    assert statistics.median(ours) / statistics.median(theirs) == 5.0  # what a ratio of medians would tell


def test_plain_loss_is_that_of_peft():
    case = load("cases").CASES["tiny"]("cpu")
    torch.testing.assert_close(case.plain_loss(), case.peft_model(**case.batch).loss)


def moved(guide_class, base_model):
    """A guide away from its start, whose flow is not the identity any more, for two factors of different shapes."""
    model = BayesianLora(base_model)
    guide = guide_class(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (*model.priors.parameters(), *guide.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model, guide


def check_same_draws(model, guide, factors):
    with torch.no_grad(), private_pyro():
        torch.manual_seed(0)
        ours = guide()
        torch.manual_seed(0)
        for stack, factor in zip(model.stacks, factors, strict=True):
            torch.testing.assert_close(factor.draw(), ours[stack.name][0], rtol=1e-4, atol=1e-6)


BASES = {
    "bert": lambda: tiny_bert(targets=["query"], num_layers=1),
    "llama": lambda: tiny_llama(targets=["v_proj"], num_layers=1),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("guide_class", [FlowGuide, MeanFieldGuide])
def test_loop_draws_what_the_guide_draws(guide_class, base):
    model, guide = moved(guide_class, BASES[base]())
    check_same_draws(model, guide, load("draws").loop_of(model, guide))


def test_a_loop_without_its_flow_would_be_caught():
    model, guide = moved(FlowGuide, BASES["bert"]())
    draws = load("draws")
    cut = [draws.LoopFactor(**{**vars(factor), "layers": ()}) for factor in draws.loop_of(model, guide)]
    with pytest.raises(AssertionError):
        check_same_draws(model, guide, cut)


def test_packed_questions_are_the_same_work(monkeypatch, capsys):
    case = load("cases").CASES["tiny-decoder"]("cpu")
    model = BayesianLora(case.peft_model, "point", case.likelihood)
    packed, rows = (
        model.likelihood.scores(model.run_with(model.lora_weights(), batch), batch)
        for batch in load("packing").make_batches(99, "cpu")
    )
    assert rows.std() > 1e-3
    torch.testing.assert_close(packed, rows, rtol=1e-4, atol=1e-5)
    run("packing", "--json", "--model", "tiny-decoder", monkeypatch=monkeypatch)
    row = json.loads(capsys.readouterr().out)["tiny-decoder"]
    assert row.keys() >= EVERYWHERE
    assert row["tokens"] == {"packed": 8 * 43, "rows": 8 * 4 * 31}
