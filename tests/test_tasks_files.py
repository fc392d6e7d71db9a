"""The user's files are read, or refused with the line and the cure."""

import gzip
import json

import pytest

from bayeslora_pyro.tasks import load_file


@pytest.fixture
def write(tmp_path):
    def make(name, content):
        content = content if isinstance(content, bytes) else content.encode()
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return make


ROWS = [("good film", "pos"), ('says "no", twice\nand again', "neg"), ("ünïcode \u2028 text", "pos")]
JSONL = "\n".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in ROWS)
CSV = 'text,label\n"good film",pos\r\n"says ""no"", twice\nand again",neg\n\nünïcode \u2028 text,pos\n'


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz", "data.csv", "DATA.CSV", "data.csv.gz"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_classification_in_every_format(write, name, mark):
    content = CSV if "csv" in name.lower() else JSONL
    for columns in ({}, {"text_column": "text", "label_column": "label"}):
        examples = load_file(write(name, mark + content), **columns)
        assert examples.kind == "classification"
        assert examples.texts == tuple(text for text, _ in ROWS)
        assert examples.classes == ("neg", "pos")
        assert examples.labels == (1, 0, 1)


def test_integer_classes_are_sorted_as_numbers(write):
    lines = [json.dumps({"text": "t", "label": label}) for label in (10, 9, -1, 10)]
    examples = load_file(write("data.jsonl", "\n".join(lines)))
    assert examples.classes == ("-1", "9", "10")
    assert examples.labels == (2, 1, 0, 2)


def test_evaluation_file_uses_the_classes_of_training(write):
    path = write("eval.csv", "text,label\na,pos\nb,pos\n")
    assert load_file(path, classes=("neg", "neutral", "pos")).labels == (2, 2)
    with pytest.raises(ValueError, match=r"eval.csv, line 2: the class 'pos' is not one of .* neg, neutral"):
        load_file(path, classes=("neg", "neutral"))


def test_regression(write):
    examples = load_file(
        write("data.csv", "formula,gap\nZnO,3.3\nSi,1e0\n"), text_column="formula", target_column="gap"
    )
    assert (examples.kind, examples.texts, examples.targets) == ("regression", ("ZnO", "Si"), (3.3, 1.0))


@pytest.mark.parametrize("name", ["data.jsonl", "data.csv"])
def test_multiple_choice(write, name):
    rows = [("q1", ["a", "b, c"], 1), ("q2", ["x", "y", "z"], 0)]
    if name == "data.csv":
        lines = [f'{q},"{json.dumps(c).replace(chr(34), chr(34) * 2)}",{label}' for q, c, label in rows]
        content = "\n".join(["question,choices,label", *lines])
    else:
        content = "\n".join(json.dumps({"question": q, "choices": c, "label": label}) for q, c, label in rows)
    examples = load_file(write(name, content))
    assert examples.kind == "choice"
    assert examples.texts == ("q1", "q2")
    assert examples.choices == (("a", "b, c"), ("x", "y", "z"))
    assert examples.labels == (1, 0)
    assert examples.num_outcomes == 3


def test_plain_text(write):
    examples = load_file(write("data.jsonl", '{"body": "one"}\n\n{"body": "two"}\n'), text_column="body")
    assert (examples.kind, examples.texts) == ("text", ("one", "two"))


def choice(**changes):
    return json.dumps({"question": "q", "choices": ["a", "b"], "label": 0, **changes})


BAD = {
    "extension": ("data.parquet", b"", {}, r"unknown extension: use one of \.jsonl"),
    "empty jsonl": ("data.jsonl", "\n\n", {}, "is empty"),
    "header only": ("data.csv", "text,label\n", {}, "is empty"),
    "not utf-8": ("data.csv", b"text,label\na,b\nd\xe9j\xe0,b\n", {}, "line 3 is not UTF-8"),
    "not gzip": ("data.jsonl", None, {}, "not a whole gzip file"),
    "broken json": ("data.jsonl", '{"text": "a", "label": 1}\n{"text": \n', {}, "line 2 is not JSON"),
    "json list": ("data.jsonl", "[1, 2]\n", {}, "line 1 holds a JSON list"),
    "ragged csv": ("data.csv", "text,label\na,b,c\n", {}, "line 2 has 3 fields, the header 2"),
    "open quote": ("data.csv", 'text,label\n"a,b\n', {}, "is not CSV"),
    "column twice": ("data.csv", "text,text\na,b\n", {}, r"line 1 names the columns \['text'\] twice"),
    "no text column": (
        "data.csv",
        "body,label\na,b\n",
        {},
        "no column 'text': its columns are 'body', 'label'",
    ),
    "no such label": (
        "data.csv",
        "text,y\na,b\n",
        {"label_column": "z"},
        "no column 'z': its columns are 'text', 'y'",
    ),
    "no such target": ("data.csv", "text,y\na,1\n", {"target_column": "z"}, "no column 'z'"),
    "both": ("data.csv", "text,y\na,1\n", {"target_column": "y", "label_column": "y"}, "both given"),
    "hole": (
        "data.jsonl",
        '{"text": "a", "label": 1}\n{"text": "b"}',
        {},
        "line 2: 'label' is missing or empty",
    ),
    "empty text": ("data.csv", "text,label\n ,b\nc,d\n", {}, "line 2: 'text' is missing or empty"),
    "text is a number": (
        "data.jsonl",
        '{"text": 3, "label": 1}',
        {},
        "line 1: 'text' is 3, which is not text",
    ),
    "one class": ("data.csv", "text,label\na,b\nc,b\n", {}, "has the one class 'b'"),
    "label is a float": (
        "data.jsonl",
        '{"text": "a", "label": 1.5}',
        {},
        "line 1: 'label' is 1.5: a class is",
    ),
    "target is a word": (
        "data.csv",
        "text,y\na,1\nb,high\n",
        {"target_column": "y"},
        "line 3: 'y' is 'high'",
    ),
    "target is NaN": ("data.jsonl", '{"text": "a", "y": NaN}', {"target_column": "y"}, "line 1: 'y' is nan"),
    "target is infinite": ("data.csv", "text,y\na,-inf\n", {"target_column": "y"}, "line 2: 'y' is '-inf'"),
    "target is true": ("data.jsonl", '{"text": "a", "y": true}', {"target_column": "y"}, "'y' is True"),
    "label too large": (
        "data.jsonl",
        choice() + "\n" + choice(label=2),
        {},
        "line 2: 'label' is 2: .* 0 to 1",
    ),
    "label negative": ("data.jsonl", choice(label=-1), {}, "'label' is -1"),
    "label is a letter": ("data.jsonl", choice(label="A"), {}, "'label' is 'A'"),
    "label is true": ("data.jsonl", choice(label=True), {}, "'label' is True"),
    "choices is a word": ("data.jsonl", choice(choices="a"), {}, "'choices' is not a JSON list"),
    "one choice": ("data.jsonl", choice(choices=["a"]), {}, "two or more strings"),
    "empty choice": ("data.jsonl", choice(choices=["a", " "]), {}, "two or more strings"),
    "no label": ("data.jsonl", '{"question": "q", "choices": ["a", "b"]}', {}, "no column 'label'"),
}


@pytest.mark.parametrize("case", BAD)
def test_malformed_files(write, case):
    name, content, options, message = BAD[case]
    if content is None:
        path = write(name, "x").rename(write(name, "x").with_suffix(".jsonl.gz"))
    else:
        path = write(name, content)
    with pytest.raises(ValueError, match=message) as error:
        load_file(path, **options)
    assert len(str(error.value)) < 400


def test_truncated_gzip(write):
    path = write("data.jsonl.gz", JSONL * 50)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match="not a whole gzip file"):
        load_file(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*nowhere\.csv"):
        load_file(tmp_path / "nowhere.csv")
