"""Folders whose replacement is cut off by a kill, at every rename: one of the two is there, whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bayeslora_pyro.folders import CONFIG
from bayeslora_pyro.models import GaussianPrior
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.replacing import new_folder, restore

from .cli_files import FAST, MOODS, bayeslora, bert, fitted, reviews, write
from .test_folders import bare, contents, posterior_of

__all__ = ["bert", "fitted"]

KILLED = """
import os, shutil, sys
from pathlib import Path
from bayeslora_pyro import replacing

def stop_before(count, function):
    left = [count]
    def stopping(*args, **options):
        left[0] -= 1
        if left[0] == 0:
            os._exit(9)
        return function(*args, **options)
    return stopping

folder, source, where, marker = sys.argv[1:]
if where == "removal":
    shutil.rmtree = stop_before(1, shutil.rmtree)
else:
    Path.rename = stop_before({"first rename": 1, "second rename": 2}[where], Path.rename)
with replacing.new_folder(Path(folder), marker) as new:
    shutil.copytree(source, new, dirs_exist_ok=True)
"""


def killed_in(where: str, folder: Path, source: Path, marker: str) -> None:
    """Replaces a folder by a copy of another in a process that dies before a rename, or before the old one goes."""
    arguments = [str(folder), str(source), where, marker]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 9


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with a file, and one to replace it with."""
    old, new = tmp_path / "place" / "kept", tmp_path / "source"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "marker").write_text(folder.name)
    return old, new


@pytest.mark.parametrize(
    ("where", "left"), [("first rename", "kept"), ("second rename", "source"), ("removal", "source")]
)
def test_one_of_the_two_is_there_whole(where: str, left: str, folders: tuple[Path, Path]) -> None:
    old, new = folders
    killed_in(where, old, new, "marker")
    assert old.exists() != (where == "second rename")
    restore(old)
    assert contents(old) == {"marker": left.encode()}
    if where != "first rename":  # another process may still be at work in the hidden folder
        assert list(old.parent.iterdir()) == [old]
    before = contents(old.parent)
    restore(old)
    assert contents(old.parent) == before


@pytest.mark.parametrize("where", ["second rename", "removal"])
def test_the_next_save_finds_it(where: str, folders: tuple[Path, Path]) -> None:
    old, new = folders
    (old / "notes.txt").write_text("mine")
    killed_in(where, old, new, "marker")
    with new_folder(old, "marker") as target:
        (target / "marker").write_text("third")
    assert contents(old) == {"marker": b"third", "notes.txt": b"mine"}
    assert list(old.parent.iterdir()) == [old]


def test_what_only_looks_like_it_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "kept"
    for name in (
        ".kept.old/old",
        ".kept.backup1/old",
        ".kept.backup1/new",
        ".kept.replacing-x/old",
        ".other.replacing-x/new",
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "marker").write_text("mine")
    before = contents(tmp_path)
    restore(path)
    restore(tmp_path / "nowhere" / "kept")
    assert contents(tmp_path) == before
    path.mkdir()
    restore(path)
    assert set(before) - set(contents(tmp_path)) == {".kept.replacing-x/old/marker"}


def test_a_replacement_that_another_process_finishes_is_done(folders: tuple[Path, Path], monkeypatch) -> None:
    old, _ = folders
    rename, calls = Path.rename, []

    def with_reader(self: Path, target: Path) -> Path:
        calls.append(self.name)
        if calls == [old.name, "new"]:
            restore(old)  # a reader comes just between the two renames
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", with_reader)
    with new_folder(old, "marker") as target:
        (target / "marker").write_text("new")
    assert calls == [old.name, "new", "new"]
    assert contents(old) == {"marker": b"new"}
    assert list(old.parent.iterdir()) == [old]


def test_a_posterior_is_loaded_from_where_the_kill_left_it(tmp_path: Path) -> None:
    folder, source = tmp_path / "place" / "posterior", tmp_path / "source"
    posterior_of().save(folder)
    posterior_of("gaussian").save(source)
    killed_in("second rename", folder, source, CONFIG)
    assert not folder.exists()
    loaded = Posterior.load(folder, bare())
    assert isinstance(loaded.model.prior_of(loaded.stacks[0]), GaussianPrior)
    assert torch.equal(loaded.weights(1)["A_2x16"], posterior_of("gaussian").weights(1)["A_2x16"])
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("command", ["evaluate", "fit"])
def test_the_command_finds_the_run(command: str, fitted: Path, bert: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "place" / "run"
    data = write(tmp_path / "reviews.csv", reviews(40))
    arguments = ["--model", bert, "--data", data, *MOODS, *FAST, "--output", folder]
    assert bayeslora("fit", *arguments) == 0
    killed_in("second rename", folder, fitted / "run", "run.json")
    if command == "evaluate":
        assert bayeslora("evaluate", folder, "--num-draws", 1) == 0
    else:
        assert bayeslora("fit", *arguments) == 2
        assert "holds a finished run: choose a new folder, or add --overwrite" in capsys.readouterr().err
    assert list(folder.parent.iterdir()) == [folder]
    assert contents(folder) == contents(fitted / "run")
