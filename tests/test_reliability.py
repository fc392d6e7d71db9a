"""Some thirty kills, damages and mistakes each, of which `benchmarks/reliability.py` has hundreds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bayeslora_pyro import checkpoints, folders

from .cli_files import bert, fitted, llama
from .fuzzing import CHECKPOINT_DAMAGES, FOLDER_DAMAGES, WATCH, Checkpoints, Folders, fuzz, outcome_of
from .mistakes import data_mistakes, fault_of, option_mistakes, other_mistakes

__all__ = ["bert", "fitted", "llama"]

ROOT = Path(__file__).resolve().parents[1]


def test_a_killed_save_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.kills", tmp_path, "12"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("whole") == 2
    assert "fault" not in done.stdout


@pytest.mark.parametrize(("kind", "damages"), [(Folders, FOLDER_DAMAGES), (Checkpoints, CHECKPOINT_DAMAGES)])
def test_damaged_files_are_refused_or_exact(kind, damages, tmp_path: Path) -> None:
    counts, faults = fuzz(kind(tmp_path).trial, 36)
    assert faults == []
    assert {name for name, _ in counts} == set(damages)
    assert sum(counts.values()) == 36


@pytest.mark.parametrize("kind", [Folders, Checkpoints])
def test_a_library_without_digests_would_be_caught(kind, tmp_path: Path, monkeypatch) -> None:
    trials = kind(tmp_path)
    monkeypatch.setattr(folders, "_check_files", lambda *_: None)
    monkeypatch.setattr(checkpoints, "digest_of_tensors", lambda *_: trials_digest)
    trials_digest = (
        checkpoints.safe_open(
            trials.original if kind is Checkpoints else trials.original / "posterior.safetensors",
            framework="pt",
        )
        .metadata()[checkpoints.SIGNED]
        .partition(" ")[0]
    )
    _, faults = fuzz(trials.trial, 36)
    assert any("silently other numbers" in fault for fault in faults)


@pytest.mark.parametrize(
    "load",
    [lambda: os.system("true") == 0, lambda: bool(__import__("antigravity_of_nobody")), lambda: 1 / 0 == 0],
)
def test_code_and_crashes_would_be_caught(load) -> None:
    assert outcome_of(load, forged=True)[0] == "fault"
    WATCH.seen.clear()


def test_mistakes_are_named_in_one_line(bert: Path, llama: Path, fitted: Path, tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_bytes((fitted / "reviews.csv").read_bytes())
    names = {"bert": bert, "llama": llama, "run": fitted / "run"}
    rows = [*data_mistakes(tmp_path), *other_mistakes(tmp_path), *option_mistakes()]
    assert len(rows) > 200
    assert [fault for row in rows[::7] if (fault := fault_of(row, tmp_path, **names))] == []


def test_a_line_that_is_right_would_be_caught(bert: Path, fitted: Path, tmp_path: Path) -> None:
    line = ["draws", "{run}", "--num", "1", "--output", "new"]
    assert "exit code 0" in fault_of(("right", line, "--num"), tmp_path, run=fitted / "run")
    assert "no --seed" in fault_of(("wrong", [*line, "--num", "x"], "--seed"), tmp_path, run=fitted / "run")


FAULTS_FOUND = {  # by the runs of benchmarks/reliability.py, with a word of what is said now
    "NUL": ("holds a NUL", b"text,label\na,x\nb\0,y\n", "a.csv"),
    "deep": ("recursion depth", b'{"text": ' + b"[" * 100_000, "a.jsonl"),
    "digits": ("a.jsonl, line 1 cannot be read", b'{"text": ' + b"9" * 10_000 + b"}", "a.jsonl"),
}


@pytest.mark.parametrize("case", FAULTS_FOUND)
def test_files_that_once_were_taken_or_crashed(case: str, tmp_path: Path, bert: Path) -> None:
    said, content, name = FAULTS_FOUND[case]
    (tmp_path / name).write_bytes(content)
    line = ["fit", "--model", str(bert), "--data", name]
    assert fault_of((case, line, said), tmp_path) == ""
