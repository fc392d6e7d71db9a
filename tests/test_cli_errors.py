"""What the command says of what it cannot do: one line, exit code 2, and nothing written."""

import json
import re
import shutil
from pathlib import Path

import pytest

from bayeslora_pyro.cli.commands import COMMANDS
from bayeslora_pyro.cli.parsing import parse

from .cli_files import FAST, bayeslora, bert, fitted, llama, questions, reviews, snapshot, write

__all__ = ["bert", "fitted", "llama"]

FIT = "fit --model {bert} --data reviews.csv --text-column review --label-column mood"

MISTAKES = {
    # The command line, and what its one line has to hold.
    "no command": ("", ["fit, evaluate, report, draws"]),
    "unknown command": ("fti --model minilm", ["'fti'", "did you mean fit"]),
    "unknown option": (f"{FIT} --num-step 3", ["--num-step ", "fit", "did you mean --num-steps?"]),
    "option of another command": ("evaluate {run} --num-steps 3", ["--num-steps", "evaluate"]),
    "stray argument": (f"{FIT} extra", ["'extra'", "--flag"]),
    "option without value": (f"{FIT} --num-steps", ["--num-steps", "expected one argument"]),
    "text for a number": (f"{FIT} --num-steps five", ["--num-steps five", "whole number"]),
    "fraction for a whole number": (
        f"{FIT} --batch-size 1.5",
        ["--batch-size 1.5", "whole number of at least 1"],
    ),
    "too small": (f"{FIT} --batch-size 0", ["--batch-size 0", "at least 1"]),
    "setting out of range": (f"{FIT} --kl-warmup 2", ["--kl-warmup 2", "between 0 and 1"]),
    "negative weight": (f"{FIT} --kl-weight -1", ["--kl-weight -1", "not be negative"]),
    "not a number": (f"{FIT} --learning-rate nan", ["--learning-rate nan", "give a number"]),
    "no steps": (f"{FIT} --num-steps 0", ["--num-steps 0", "at least 1"]),
    "unknown schedule": (f"{FIT} --schedule step", ["--schedule step", "constant, linear, cosine"]),
    "nothing to draw": (
        f"{FIT} --method lora --draw-per-item",
        ["--draw-per-item True", "draw_per_item=False"],
    ),
    "unknown precision": (f"{FIT} --dtype half", ["--dtype half", "float16"]),
    "no model": ("fit --data reviews.csv", ["--model is missing", "minilm"]),
    "no data": ("fit --model {bert}", ["--task or --data is missing"]),
    "task and data": (f"{FIT} --task spam", ["--task spam", "reviews.csv", "give one"]),
    "column of a task": ("fit --model {bert} --task spam --text-column a", ["--text-column a", "--data"]),
    "folder for a file": (f"{FIT} --data-dir .", ["--data-dir .", "--task"]),
    "two kinds": (f"{FIT} --target-column stars", ["--label-column mood", "--target-column stars"]),
    "unknown model": (
        "fit --model no-such-model --data reviews.csv --text-column review --label-column mood",
        ["--model no-such-model", "minilm or smollm2"],
    ),
    "folder that is no model": (
        "fit --model empty --data reviews.csv --text-column review --label-column mood",
        ["--model empty", "minilm or smollm2"],
    ),
    "damaged model": (
        "fit --model broken --data reviews.csv --text-column review --label-column mood",
        ["--model broken", "not a valid JSON file", "minilm or smollm2"],
    ),
    "encoder for questions": (
        "fit --model minilm --data quiz.jsonl",
        ["--model", "'minilm'", "'choice'", "smollm2"],
    ),
    "unknown task": (
        "fit --model {bert} --task sentimnt",
        ["--task", "'sentimnt'", "did you mean 'sentiment'"],
    ),
    "unknown method": (f"{FIT} --method glow", ["--method glow", "bayesian-lora-mf"]),
    "unknown transform": (f"{FIT} --transform planer", ["--transform planer", "planar"]),
    "transform without flow": (
        f"{FIT} --method bayesian-lora-mf --transform planar",
        ["--transform", "bayesian-lora-mf"],
    ),
    "prior without posterior": (f"{FIT} --method lora --prior.rows 3", ["--prior.rows", "--method lora"]),
    "noise out of range": (f"{FIT} --guide.noise-scale 2", ["--guide.noise-scale 2", "between 0 and 1"]),
    "unknown module": (f"{FIT} --target-modules querry", ["--target-modules", "'querry'", "query, value"]),
    "text too long": (f"{FIT} --max-length 500", ["--max-length 500", "24 tokens"]),
    "scoring of no choices": (f"{FIT} --choice-scoring mean", ["--choice-scoring mean", "classification"]),
    "unknown scoring": (f"{FIT} --choice-scoring max", ["--choice-scoring max", "sum, mean, letters"]),
    "more choices than known letters": (
        "fit --model {llama} --data five.jsonl --choice-scoring letters",
        ["--choice-scoring letters", "single tokens"],
    ),
    "unknown device": (f"{FIT} --device gpu", ["--device gpu", "give cpu"]),
    "missing file": (
        "fit --model {bert} --data review.csv",
        ["--data review.csv", "did you mean reviews.csv?"],
    ),
    "missing column": (
        "fit --model {bert} --data reviews.csv --text-column txt --label-column mood",
        ["--text-column txt", "'review', 'mood', 'stars'"],
    ),
    "unnamed column": (
        "fit --model {bert} --data reviews.csv --label-column mood",
        ["'text'", "--text-column"],
    ),
    "unknown extension": ("fit --model {bert} --data notes.txt", ["--data", "notes.txt", ".jsonl"]),
    "malformed line": ("fit --model {bert} --data bad.jsonl", ["--data", "line 2", "JSON"]),
    "malformed number": (
        "fit --model {bert} --data reviews.csv --text-column review --target-column mood",
        ["--data", "line 2", "'mood'", "finite number"],
    ),
    "cut gzip": ("fit --model {bert} --data cut.jsonl.gz", ["--data", "cut.jsonl.gz", "gzip"]),
    "constant target": (
        "fit --model {bert} --data constant.csv --text-column review --target-column stars",
        ["constant.csv", "training targets are 5"],
    ),
    "too many items": (f"{FIT} --train 1000", ["--train 1000", "at most"]),
    "nothing to train on": (f"{FIT} --tuning 48 --test 12", ["reviews.csv", "none for training", "--tuning"]),
    "output is a file": (f"{FIT} --output notes.txt", ["--output notes.txt", "a file"]),
    "output holds something else": (f"{FIT} --output taken", ["--output taken", "thesis.tex", "new folder"]),
    "output holds a run": (f"{FIT} --output done", ["--output done", "finished run", "--overwrite"]),
    "output holds half a run": (f"{FIT} --output half", ["--output half", "interrupted run", "--resume"]),
    "resume and overwrite": (f"{FIT} --resume --overwrite", ["--resume", "--overwrite", "one of them"]),
    "nothing to resume": ("fit --resume --output nowhere", ["--output nowhere", "no run to resume"]),
    "resume with another setting": (
        "fit --resume --output half --batch-size 4",
        ["--batch-size 4", "half has 8", "leave it out"],
    ),
    "resume with other data": (
        "fit --resume --output moved",
        ["--data", "not those of the fit", "fit again"],
    ),
    "resume a damaged checkpoint": ("fit --resume --output torn", ["torn/checkpoint.safetensors", "damaged"]),
    "missing config": (f"{FIT} --config none.yaml", ["--config none.yaml", "No such file"]),
    "config is no YAML": (f"{FIT} --config notyaml.yaml", ["--config notyaml.yaml, line 2", "not YAML"]),
    "config is a list": (f"{FIT} --config list.yaml", ["--config list.yaml", "name: value"]),
    "unknown name in config": (f"{FIT} --config name.yaml", ["name.yaml", "'num_step'", "num_steps"]),
    "wrong value in config": (
        f"{FIT} --config value.yaml",
        ["value.yaml", "prior.rows", "many", "whole number"],
    ),
    "no run": ("evaluate", ["DIR is missing"]),
    "run is not there": ("evaluate nowhere", ["DIR nowhere", "no such folder"]),
    "folder that is no run": ("evaluate taken", ["DIR taken", "run.json"]),
    "unfinished run": ("report half", ["half", "interrupted fit", "--resume --output half"]),
    "damaged record": ("evaluate torn-record", ["torn-record/run.json", "damaged"]),
    "record of the future": ("evaluate future", ["future/run.json", "format 9", "update"]),
    "posterior gone": ("draws lost --num 1", ["DIR lost", "posterior_config.json", "fit again"]),
    "posterior damaged": (
        "draws damaged --num 1",
        ["DIR", "damaged/posterior.safetensors", "not the file that was saved"],
    ),
    "unknown shift": ("evaluate {run} --shift tweet", ["--shift", "'tweet'", "tweets"]),
    "shift of other classes": ("evaluate {run} --shift other.csv", ["--shift", "good", "neg, pos"]),
    "shift of another kind": ("evaluate {run} --shift quiz.jsonl", ["--shift", "quiz.jsonl", "'review'"]),
    "missing shift": ("evaluate {run} --shift gone.csv", ["--shift gone.csv", "no file"]),
    "shift given twice": ("evaluate {run} --shift more.csv more.csv", ["--shift more.csv", "once"]),
    "training data again": ("evaluate {run} --data reviews.csv", ["--data reviews.csv", "was fitted to"]),
    "figures into a folder": ("evaluate {run} --json taken", ["--json taken", "folder"]),
    "no draws": ("evaluate {run} --num-draws 0", ["--num-draws 0", "at least 1"]),
    "page of another kind": ("report {run} --output page.pdf", ["--output page.pdf", ".html"]),
    "nothing to begin with": ("generate {run}", ["--prompt and --prompts are missing"]),
    "two things to begin with": (
        "generate {run} --prompt film --prompts reviews.csv",
        ["--prompt and --prompts were both given"],
    ),
    "missing prompts": ("generate {run} --prompts review.csv", ["--prompts review.csv", "reviews.csv?"]),
    "nothing to sample from": ("generate {run} --prompt film --top-p 0", ["--top-p 0", "above 0"]),
    "writing with a classifier": (
        "generate {run} --prompt film",
        ["is for classification", "writes no text"],
    ),
    "draws into a full folder": ("draws {run} --output taken", ["--output taken", "not empty"]),
}


@pytest.fixture(scope="module")
def shelf(fitted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of good and bad files and runs."""
    folder = tmp_path_factory.mktemp("shelf")
    rows = reviews(60)
    shutil.copy(fitted / "reviews.csv", folder)
    write(folder / "more.csv", reviews(10, seed=2))
    write(folder / "quiz.jsonl", questions(20))
    write(folder / "five.jsonl", [{**row, "choices": list("abcde"), "label": 3} for row in questions(20)])
    write(folder / "constant.csv", [{**row, "stars": 5} for row in rows])
    write(folder / "other.csv", [{**row, "mood": "good" if row["mood"] == "pos" else "bad"} for row in rows])
    (folder / "bad.jsonl").write_text('{"text": "a", "label": 1}\n{"text": \n')
    (folder / "notes.txt").write_text("nothing")
    whole = write(folder / "cut.jsonl.gz", rows)
    whole.write_bytes(whole.read_bytes()[:-20])
    (folder / "notyaml.yaml").write_text("a: [1\n")
    (folder / "list.yaml").write_text("- a\n")
    (folder / "name.yaml").write_text("num_step: 3\n")
    (folder / "value.yaml").write_text("prior:\n  rows: many\n")
    (folder / "taken").mkdir()
    (folder / "taken" / "thesis.tex").write_text("years of work")
    (folder / "empty").mkdir()
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text('{"model_type": "bert"')
    _add_runs(folder, fitted / "run")
    return folder


def _add_runs(folder: Path, run: Path) -> None:
    """Copies of a run, most of them spoilt."""
    for name in ("done", "half", "moved", "torn", "torn-record", "future", "lost", "damaged"):
        shutil.copytree(run, folder / name)
    for name in ("half", "moved", "torn"):
        _change(folder / name, finished=False)
        (folder / name / "checkpoint.safetensors").write_bytes(b"torn")
    record = json.loads((folder / "moved" / "run.json").read_text())
    record["options"]["data"] = str(folder / "other.csv")
    (folder / "moved" / "run.json").write_text(json.dumps(record))
    record = (folder / "torn-record" / "run.json").read_text()
    (folder / "torn-record" / "run.json").write_text(record[: len(record) // 2])
    _change(folder / "future", format=9)
    (folder / "lost" / "posterior_config.json").unlink()
    tensors = folder / "damaged" / "posterior.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-8])


def _change(run: Path, **values: object) -> None:
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | values))


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_named_in_one_line(
    name: str, shelf: Path, fitted: Path, bert: Path, llama: Path, capfd, monkeypatch
) -> None:
    line, fragments = MISTAKES[name]
    monkeypatch.chdir(shelf)
    before = snapshot(shelf)
    assert bayeslora(*line.format(bert=bert, llama=llama, run=fitted / "run").split()) == 2
    captured = capfd.readouterr()
    (message,) = captured.err.splitlines()
    assert message.startswith("bayeslora: ")
    assert [fragment for fragment in fragments if fragment not in message] == []
    assert captured.out == ""
    assert snapshot(shelf) == before


def test_every_flag_has_its_row_once() -> None:
    assert len({line for line, _ in MISTAKES.values()}) == len(MISTAKES) > 25


@pytest.mark.parametrize("switch", ["flag", "variable"])
def test_traceback_only_on_demand(switch: str, shelf: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(shelf)
    if switch == "variable":
        monkeypatch.setenv("BAYESLORA_DEBUG", "1")
    assert bayeslora("evaluate", "nowhere", *(["--debug"] if switch == "flag" else [])) == 2
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert error.splitlines()[-1].startswith("bayeslora: DIR nowhere")


def test_failure_that_is_nobodys_mistake(shelf: Path, fitted: Path, capsys, monkeypatch) -> None:
    def fail(*_, **__):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr("bayeslora_pyro.posterior.Posterior.predict", fail)
    assert bayeslora("evaluate", fitted / "run") == 1
    assert capsys.readouterr().err == (
        "bayeslora: RuntimeError: out of memory (run again with --debug to see where)\n"
    )


def test_loss_that_is_not_finite(fitted: Path, bert: Path, tmp_path: Path, capsys) -> None:
    columns = ["--text-column", "review", "--label-column", "mood"]
    arguments = [
        "--model",
        bert,
        "--data",
        fitted / "reviews.csv",
        *columns,
        *FAST,
        "--learning-rate",
        "1e30",
    ]
    assert bayeslora("fit", *arguments, "--output", tmp_path / "run") == 1
    (message,) = capsys.readouterr().err.splitlines()
    assert re.search(r"learning.rate.* --overwrite", message)


def test_failed_evaluation_leaves_the_old_figures(
    shelf: Path, fitted: Path, tmp_path: Path, monkeypatch
) -> None:
    figures = tmp_path / "metrics.json"
    figures.write_text("old")
    monkeypatch.chdir(shelf)
    assert bayeslora("evaluate", fitted / "run", "--shift", "other.csv", "--json", figures) == 2
    assert snapshot(tmp_path) == {"metrics.json": b"old"}


def test_flags_win_over_the_configuration_file(tmp_path: Path) -> None:
    config = tmp_path / "a.yaml"
    config.write_text(
        "num_steps: 5\nlearning_rate: 1e-3\ntarget-modules: [query]\nresume: true\nmax_grad_norm: none\n"
    )
    call = parse(["fit", "--config", str(config), "--num-steps", "7", "--target-modules", "key,value"])
    expected = {"num_steps": 7, "learning_rate": 1e-3, "target_modules": ["key", "value"], "resume": True}
    assert call.given == {**expected, "max_grad_norm": None}
    assert call.options["batch_size"] == 16


def test_documented_commands_are_understood(tmp_path: Path, monkeypatch) -> None:
    text = (Path(__file__).resolve().parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
    (config,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "fit.yaml").write_text(config)
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^bayeslora (.*)$", text, re.MULTILINE)
    assert len(lines) > 10
    calls = [parse(line.split()) for line in lines]
    assert {call.command for call in calls} == {*COMMANDS}
    flags = {option.flag for command in COMMANDS.values() for option in command.options}
    assert set(re.findall(r"--[a-z][a-z.-]+", text)) - flags <= {
        "--help",
        "--debug",
        "--config",
        "--no-khat",
        "--no-draw-per-item",
    }
