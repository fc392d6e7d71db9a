"""Command lines and files of data that are wrong, and what the command says of them."""

import contextlib
import gzip
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bayeslora_pyro.cli import main
from bayeslora_pyro.cli.commands import COMMANDS
from bayeslora_pyro.cli.options import Option

from .cli_files import FAST, bayeslora, reviews, snapshot, write

Line = list[str]

Mistake = tuple[str, Line, str]
"""A name, a command line, and what the message has to hold: the flag or the file."""

ROWS = [f"the film is great day {day},{'pos' if day % 2 else 'neg'},{day}.5" for day in range(30)]
HEAD = "review,mood,stars"
FIT = ["fit", "--output", "new", *FAST]
MOODS = ["--text-column", "review", "--label-column", "mood"]
STARS = ["--text-column", "review", "--target-column", "stars"]


def table(*rows: str, head: str = HEAD) -> bytes:
    """A CSV file of thirty good rows and some more."""
    return "\n".join((head, *ROWS, *rows, "")).encode()


def lines(*rows: object) -> bytes:
    """A JSON lines file of thirty good questions and some more lines."""
    good = [{"question": f"day {day}", "choices": ["great", "poor"], "label": day % 2} for day in range(30)]
    return "\n".join(row if isinstance(row, str) else json.dumps(row) for row in (*good, *rows)).encode()


def question(**fields: object) -> dict[str, object]:
    """A good question with some fields changed."""
    return {"question": "day", "choices": ["great", "poor"], "label": 0} | fields


CLASSES: dict[str, bytes] = {
    "empty": b"",
    "blank": b"\n\n\n",
    "only a head": f"{HEAD}\n".encode(),
    "one row": f"{HEAD}\n{ROWS[0]}\n".encode(),
    "one class": "\n".join((HEAD, *(row.replace("neg", "pos") for row in ROWS))).encode(),
    "no label": table("the film is new,,3"),
    "no text": table(",pos,3"),
    "blank text": table("   ,pos,3"),
    "too few fields": table("the film is new"),
    "too many fields": table("the film is new,pos,3,4,5"),
    "open quotes": table('"the film is new,pos,3'),
    "NUL": table("the film\0 is new,pos,3"),
    "a field of a megabyte without an end": table(f'"{"x" * 1_000_000}'),
    "not UTF-8": table() + b"\xff\xfe\xfa,pos,3\n",
    "UTF-16": table().decode().encode("utf-16"),
    "a column twice": table(head="review,mood,mood"),
    "a column without a name": table(head="review,,stars"),
    "semicolons": table().replace(b",", b";"),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "JSON": json.dumps([{"review": "a", "mood": "b"}]).encode(),
}
"""Files that are no classification."""

NUMBERS: dict[str, bytes] = {
    name: table(f"the film is new,pos,{value}")
    for name, value in {
        "no number": "many",
        "nothing": "",
        "nan": "nan",
        "inf": "inf",
        "minus inf": "-inf",
        "1e400": "1e400",
        "hexadecimal": "0x10",
        "two commas": '"1,2,3"',
        "complex": "1j",
        "boolean": "true",
    }.items()
}
"""Files that are no regression."""

CHOICES: dict[str, bytes] = {
    "half a line": lines('{"question": '),
    "no object": lines("[1, 2]"),
    "a number": lines("3"),
    "null": lines("null"),
    "a string": lines('"question"'),
    "deep": lines("[" * 100_000),
    "deep and closed": lines('{"question": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "an empty object": lines("{}"),
    "no choices": lines({"question": "day", "label": 0}),
    "choices are text": lines(question(choices="great")),
    "choices are numbers": lines(question(choices=[1, 2])),
    "one choice": lines(question(choices=["great"])),
    "an empty choice": lines(question(choices=["great", ""])),
    "choices null": lines(question(choices=None)),
    "no such choice": lines(question(label=2)),
    "negative label": lines(question(label=-1)),
    "label is huge": lines(question(label=10**30)),
    "label is many digits": lines('{"question": "d", "choices": ["a", "b"], "label": ' + "9" * 10_000 + "}"),
    "label is a fraction": lines(question(label=0.5)),
    "label is true": lines(question(label=True)),
    "label is NaN": lines('{"question": "d", "choices": ["a", "b"], "label": NaN}'),
    "label is text": lines(question(label="great")),
    "label null": lines(question(label=None)),
    "question null": lines(question(question=None)),
    "question is a list": lines(question(question=["day"])),
    "question is blank": lines(question(question=" ")),
    "not UTF-8": lines() + b"\n\xff\xff",
    "a byte order mark inside": lines("\ufeff{}"),
}
"""Files that are no questions."""

ZIPPED: dict[str, bytes] = {
    "no gzip": table(),
    "cut": gzip.compress(table())[:-20],
    "nothing": b"",
    "flipped": gzip.compress(table())[:30] + b"\0\0" + gzip.compress(table())[32:],
    "twice": gzip.compress(gzip.compress(table())),
    "a bomb of blanks": gzip.compress(b" " * 5_000_000),
}
"""Files that are no gzip of a classification."""


CONFIGS: dict[str, bytes] = {
    "no YAML": b"a: [1",
    "a list": b"- a",
    "a number": b"3",
    "tabs": b"prior:\n\trows: 3",
    "unknown": b"num_step: 3",
    "unknown level": b"prior: {row: 3}",
    "text for a number": b"num_steps: many",
    "a list for a number": b"num_steps: [3]",
    "a date for a number": b"num_steps: 2026-11-23",
    "many digits": b"num_steps: " + b"9" * 10_000,
    "nan": b"learning_rate: .nan",
    "text for a switch": b"draw_per_item: maybe",
    "a tag": b"!!python/object/apply:os.system ['touch hacked']",
    "deep": b"a: " + b"[" * 5_000,
    "not UTF-8": b"\xff\xff",
    "NUL": b"num_steps: 3\0",
    "refers to itself": b"prior: &a {rows: *a}",
    "laughs": b"a: &a {x: 1, y: 2}\n"
    + b"".join(b"%c: &%c {x: *%c, y: *%c}\n" % (k, k, k - 1, k - 1) for k in range(ord("b"), ord("y"))),
}
"""Configuration files of a fit that are none."""

RECORDS: dict[str, bytes] = {
    "empty": b"",
    "half": b'{"format": 1, "finished": true, "opt',
    "a list": b"[1]",
    "null": b"null",
    "deep": b"[" * 100_000,
    "nothing": b"{}",
    "a format alone": b'{"format": 1}',
    "no options": b'{"format": 1, "finished": true}',
    "a list of options": b'{"format": 1, "finished": true, "options": []}',
    "numbers for data": b'{"format": 1, "finished": true, "options": {}, "data": 3}',
    "a later format": b'{"format": 9}',
    "text for a format": b'{"format": "1", "finished": true}',
    "not UTF-8": b"\xff\xff",
    "zeros": bytes(1000),
}
"""What may be found in place of `run.json`."""


def other_mistakes(shelf: Path) -> Iterator[Mistake]:
    """Writes each bad configuration and each bad record, and yields the line that fits it."""
    for index, (name, content) in enumerate(CONFIGS.items()):
        path = shelf / f"config-{index}.yaml"
        path.write_bytes(content)
        whole = [*FIT, "--model", "{bert}", "--data", "reviews.csv", *MOODS]
        yield f"configuration: {name}", [*whole, "--config", path.name], path.name
    for index, (name, content) in enumerate(RECORDS.items()):
        folder = shelf / f"run-{index}"
        folder.mkdir()
        (folder / "run.json").write_bytes(content)
        for command in ("evaluate", "draws"):
            yield f"record, {command}: {name}", [command, folder.name], f"{folder.name}/run.json"


def data_mistakes(shelf: Path) -> Iterator[Mistake]:
    """Writes each bad file of data, and yields the line that fits it."""
    kinds: list[tuple[str, dict[str, bytes], str, list[str]]] = [
        ("classes", CLASSES, ".csv", MOODS),
        ("numbers", NUMBERS, ".csv", STARS),
        ("choices", CHOICES, ".jsonl", []),
        ("zipped", ZIPPED, ".csv.gz", MOODS),
    ]
    for kind, files, suffix, columns in kinds:
        model = "{llama}" if kind == "choices" else "{bert}"
        for index, (name, content) in enumerate(files.items()):
            path = shelf / f"{kind}-{index}{suffix}"
            path.write_bytes(content)
            yield f"{kind}: {name}", [*FIT, "--model", model, "--data", path.name, *columns], path.name


def option_mistakes() -> Iterator[Mistake]:
    """Yields a line for each bad value of each option."""
    for command, rows in COMMANDS.items():
        whole = [*FIT, "--model", "{bert}", "--data", "reviews.csv", *MOODS]
        run = ["{run}"] if rows.takes_run else []
        start = whole if command == "fit" else [*command.split(), *run]
        for option in rows.options:
            for value in _bad_values(option):
                yield f"{command} {option.flag} {value!r}", [*start, option.flag, *value], option.flag


def _bad_values(option: Option) -> list[Line]:
    """What an option cannot be."""
    if option.type.is_switch:
        return []
    if option.type.metavar == "N":
        return [["many"], ["-1"]]
    if option.type.metavar == "X":
        return [["nan"], ["much"]]
    return [[]] if option.type.many else [[""]]


def fault_of(mistake: Mistake, shelf: Path, **names: Path) -> str:
    """Runs a line in a folder; returns what is wrong with how it ended, or nothing."""
    name, line, fragment = mistake
    before = snapshot(shelf)
    out, error = io.StringIO(), io.StringIO()
    with contextlib.chdir(shelf), contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main([part.format(**names) if part.startswith("{") else part for part in line])
    said = error.getvalue().splitlines()
    checks: dict[str, Callable[[], bool]] = {
        f"exit code {code}": lambda: code == 2,
        f"{len(said)} lines": lambda: len(said) == 1 and said[0].startswith("bayeslora: "),
        "a message too long": lambda: len(said[0]) < 1_000,
        f"no {fragment}": lambda: fragment in said[0],
        "output": lambda: out.getvalue() == "",
        "files written": lambda: snapshot(shelf) == before,
    }
    wrong = next((check for check, holds in checks.items() if not holds()), "")
    shutil.rmtree(shelf / "new", ignore_errors=True)
    return f"{name}: {wrong}: {error.getvalue()[:300]}" if wrong else ""


def make_run(shelf: Path, bert: Path) -> Path:
    """A finished run to make mistakes with."""
    write(shelf / "reviews.csv", reviews(40))
    columns = ["--text-column", "review", "--label-column", "mood"]
    arguments = ["--model", bert, "--data", shelf / "reviews.csv", *columns, *FAST]
    if bayeslora("fit", *arguments, "--output", shelf / "run"):
        raise RuntimeError("The run that mistakes are made with could not be fitted.")
    return shelf / "run"
