"""Checkpoint files: whole or not there, and refused where they are damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bayeslora_pyro.checkpoints import (
    SIGNED,
    load_modules,
    read_tensors,
    replace_file,
    state_of,
    write_tensors,
)

TENSORS = {"a.b": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(3), "half": torch.ones(2).bfloat16()}

KILLED = """
import os, signal, sys
from pathlib import Path
from bayeslora_pyro.checkpoints import replace_file

def write(path):
    path.write_bytes(b"half a checkp")
    os.kill(os.getpid(), signal.SIGKILL)

replace_file(Path(sys.argv[1]), write)
"""


def test_tensors_and_header_come_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.safetensors"
    header = {"history": [{"elbo": -0.1 - 0.2, "step": 1.0}], "text": "naïve – ü"}
    write_tensors(path, TENSORS, header)
    tensors, read = read_tensors(path)
    assert read == header
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_views_and_shared_tensors_are_written(tmp_path: Path) -> None:
    base = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "run", {"one": base.mT, "two": base, "three": nn.Parameter(base[0])})
    tensors, header = read_tensors(tmp_path / "run")
    assert torch.equal(tensors["one"], base.mT)
    assert torch.equal(tensors["three"], base[0])
    assert header == {}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_error_amid_writing_leaves_the_old_file(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.write_bytes(b"old")

    def write(temporary: Path) -> None:
        temporary.write_bytes(b"ne")
        raise error("disk full")

    with pytest.raises(error, match="disk full"):
        replace_file(path, write)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_amid_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_tensors(path, TENSORS)
    before = path.read_bytes()
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], cwd=root, check=False, capture_output=True
    )
    assert done.returncode == -9, done.stderr
    assert path.read_bytes() == before
    assert read_tensors(path)[0].keys() == TENSORS.keys()
    write_tensors(path, {}, {"again": True})
    assert read_tensors(path) == ({}, {"again": True})


def test_a_damaged_file_is_refused_and_left(tmp_path: Path) -> None:
    path = tmp_path / "run"
    write_tensors(path, TENSORS)
    whole = path.read_bytes()
    for data in (
        whole[:-1],
        whole[: len(whole) // 2],
        whole[:5],
        b"",
        b"garbage" * 40,
        bytes(64),
        whole + b"more",
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"run is damaged \(.*\). Restore it from a copy, or fit again"):
            read_tensors(path)
        assert path.read_bytes() == data


@pytest.mark.parametrize("header", ["{", "[]", "3", "[" * 100_000])
def test_a_damaged_header_is_refused(header: str, tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "run", {"header": header})
    with pytest.raises(ValueError, match="run is damaged"):
        read_tensors(tmp_path / "run")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"There is no file {path}"):
            read_tensors(path)


def test_modules_are_loaded_all_or_nothing() -> None:
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    state = {name: value.clone() for name, value in state_of(model=source).items()}
    before = {name: value.clone() for name, value in target.state_dict().items()}
    wrong = {
        "'model.bias' is in only one": {"model.weight": state["model.weight"]},
        "'model.more' is in only one": state | {"model.more": torch.ones(1)},
        r"'model.bias' is \(3,\) float32 there, and \(2,\) float32 here": state
        | {"model.bias": torch.ones(3)},
        r"'model.bias' is \(2,\) float64 there": state | {"model.bias": torch.ones(2).double()},
    }
    for message, tensors in wrong.items():
        with pytest.raises(ValueError, match=message):
            load_modules(tensors, Path("run"), model=target)
        assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())
    load_modules(state | {"optimizer.0.step": torch.ones(())}, Path("run"), model=target)
    assert all(torch.equal(value, target.state_dict()[name]) for name, value in source.state_dict().items())


def test_a_file_is_safetensors_with_json(tmp_path: Path) -> None:
    write_tensors(tmp_path / "run", TENSORS, {"step": 1})
    data = (tmp_path / "run").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"][SIGNED].partition(" ")[2]) == {"step": 1}
