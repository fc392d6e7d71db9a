"""Readers of the packaged sets, on small files of the same form; the real ones are in test_tasks_real.py."""

import gzip
import json
import math
import sys
from types import SimpleNamespace

import pytest

from bayeslora_pyro.tasks import TASKS, load_task, sources
from bayeslora_pyro.tasks.catalogue import ALIASES
from bayeslora_pyro.tasks.commonsense import COMMONSENSE


@pytest.fixture
def ratings(tmp_path):
    rows = [("1", 2.0, "good"), ("2", -0.5, "so so"), ("3", -0.51, " bad\u2028"), ("4", 0.6, "fine")]
    truth = "\ufeff" + "".join(f"{i}\t{mean}\t{text}\r\n" for i, mean, text in rows)
    (tmp_path / "movieReviewSnippets_GroundTruth.txt").write_bytes(truth.encode())
    sds = [("1", 2.0, 0.5), ("2", -0.5, 0.25), ("4", 1.7, 0.125)]  # 3 is not rated, 4 is rated otherwise
    raw = "".join(f"{i}\t{mean}\t{sd}\t[1, 2]\r\n" for i, mean, sd in sds)
    (tmp_path / "movieReviewSnippets_anonDataRatings.txt").write_bytes(raw.encode())
    return tmp_path


def test_binary_sentiment_keeps_the_sure_sentences(ratings):
    examples = sources.read_sentiment(ratings, "movie", binary=True)
    assert examples.texts == ("good", "bad", "fine")
    assert [examples.classes[label] for label in examples.labels] == ["positive", "negative", "positive"]


def test_sentiment_regression_knows_the_spread_of_the_raters(ratings):
    examples = sources.read_sentiment(ratings, "movie", binary=False)
    assert examples.targets == (2.0, -0.5, -0.51, 0.6)
    assert examples.deviations[:2] == (0.5, 0.25)
    assert all(math.isnan(value) for value in examples.deviations[2:])


def test_questions_once_each(tmp_path):
    lines = ["NUM:date When ?", "HUM:ind Who : you ?", "NUM:date When ?", "NUM:count How many ?", ""]
    (tmp_path / "question_labels.txt").write_text("\n".join(lines))
    examples = sources.read_questions(tmp_path)
    assert examples.texts == ("When ?", "Who : you ?", "How many ?")
    assert examples.classes == ("HUM", "NUM")
    assert examples.labels == (1, 0, 1)


def test_spam(tmp_path):
    (tmp_path / "sms-spam.csv").write_text(',spam,text\n0,0,"Hi, you"\n1,1,WIN\n')
    examples = sources.read_spam(tmp_path)
    assert examples.texts == ("Hi, you", "WIN")
    assert [examples.classes[label] for label in examples.labels] == ["ham", "spam"]


def chat(content, answer, *before):
    return json.dumps({"input": [*before, {"role": "user", "content": content}], "ideal": answer})


LETTERED = {
    "social_iqa": (
        "test.jsonl",
        chat("Jo; ran. Why? A: to win; B: no idea; C: e.g. fun.", "C"),
        ("to win", "no idea", "e.g. fun"),
        2,
    ),
    "quartz": (
        "samples.jsonl",
        chat("It gets\n\n A: more\n B: less", "B", {"content": "hi"}),
        ("more", "less"),
        1,
    ),
    "mmlu_mix": (
        "samples-all-large.jsonl",
        json.dumps({"question": "Which?\n\nA. a\nB. b\nC. c c\nD. d\nAnswer:", "answer": "A"}),
        ("a", "b", "c c", "d"),
        0,
    ),
}


@pytest.mark.parametrize("name", LETTERED)
def test_lettered_prompts_are_taken_apart(tmp_path, name):
    file, line, choices, label = LETTERED[name]
    (tmp_path / file).write_text(f"{line}\n{line}\n")
    examples = getattr(sources, f"read_{name}")(tmp_path)
    assert len(examples) == 2
    assert examples.choices[0] == choices
    assert examples.labels[0] == label
    assert examples.texts[0] in ("Jo; ran. Why?", "It gets", "Which?")
    (tmp_path / file).write_text(line.replace("A", "Z"))
    with pytest.raises(ValueError, match="form that is not known"):
        getattr(sources, f"read_{name}")(tmp_path)


def test_band_gaps_hold_out_oxides_and_halides(tmp_path):
    formulas = ["ZnS", "ZnO", "CuBr", "BaB2O4", "Os2", "Fe3", "CdCl2", "In2Se3", "KF", "ZnS", "Co2B"]
    lines = [f"{formula},{gap},1" for gap, formula in enumerate(formulas)]
    (tmp_path / "train_regression.csv").write_text("\n".join(["Composition,Eg,avg", *lines]))
    kept, held = (sources.read_band_gaps(tmp_path, held_out=flag) for flag in (False, True))
    assert kept.texts == ("ZnS", "Os2", "Fe3", "In2Se3", "ZnS", "Co2B")
    assert kept.targets[-2] == 9.0
    assert held.texts == ("ZnO", "CuBr", "BaB2O4", "CdCl2", "KF")


def write_part(folder, name, part, questions):
    rows = [{"question": q, "choices": ["a", "b"], "label": i % 2} for i, q in enumerate(questions)]
    content = "\n".join(map(json.dumps, rows))
    (folder / f"{name}.{part}.jsonl.gz").write_bytes(gzip.compress(content.encode()))


@pytest.mark.parametrize("below", ["", "commonsense"])
def test_commonsense_from_a_folder(tmp_path, below):
    (tmp_path / below).mkdir(exist_ok=True)
    write_part(tmp_path / below, "arc_easy", "train", ["one", "two"])
    write_part(tmp_path / below, "arc_easy", "test", ["three"])
    examples = load_task("arc_easy", data_dir=tmp_path)
    assert examples.texts == ("one", "two", "three")
    assert examples.parts == ("train", "train", "test")
    assert examples.labels == (0, 1, 0)
    with pytest.raises(FileNotFoundError, match=r"no openbookqa\.train\.jsonl\.gz in data_dir="):
        load_task("openbookqa", data_dir=tmp_path)


HUB_ROWS = {
    "arc_easy": {"question": "q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
    "arc_challenge": {
        "question": "q",
        "choices": {"text": ["x", "y"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "openbookqa": {
        "question_stem": "q",
        "choices": {"text": ["x", "y"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "boolq": {"question": "q", "answer": True, "passage": "long"},
    "mmlu_chemistry": {"question": "q", "choices": ["x", "y"], "answer": 1, "subject": "s"},
    "mmlu_physics": {"question": "q", "choices": ["x", "y"], "answer": 1, "subject": "s"},
}


@pytest.mark.parametrize("name", COMMONSENSE)
def test_commonsense_from_the_hub(monkeypatch, name):
    calls = []

    def load_dataset(path, config, split):
        calls.append((path, config, split))
        return [HUB_ROWS[name]] * 3

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    examples = load_task(name)
    hub = COMMONSENSE[name]
    assert calls == [(hub.path, hub.config, part) for part in hub.parts.values()]
    assert set(examples.labels) == {1}
    assert examples.choices[0] == (("no", "yes") if name == "boolq" else ("x", "y"))
    assert examples.parts.count("test") == 3


def test_hub_that_cannot_be_reached(monkeypatch):
    def load_dataset(path, config, split):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(
        OSError, match=r"cannot get allenai/ai2_arc .* no route\nCheck the network, or give data_dir"
    ):
        load_task("arc_easy")


def test_datasets_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets, or give data_dir"):
        load_task("boolq")


def test_unknown_task():
    with pytest.raises(ValueError, match="there is no task 'sentimnet': did you mean 'sentiment'"):
        load_task("sentimnet")


def test_table_hangs_together():
    assert set(ALIASES.values()) <= set(TASKS)
    assert not set(ALIASES) & set(TASKS)
    for row in TASKS.values():
        assert row.about
        assert set(row.shifts) <= set(TASKS)
        assert all(TASKS[shift].kind == row.kind for shift in row.shifts)
