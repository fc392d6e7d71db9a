"""Cells on disk: whole, or not taken for cells; and never taken for what they are not."""

import dataclasses
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from bayeslora_pyro.bench import contenders, storing
from bayeslora_pyro.bench.cells import FASTER
from bayeslora_pyro.bench.engines import run_processes, run_ray
from bayeslora_pyro.bench.running import OtherCell, left_to_do, run_jobs, with_dtype
from bayeslora_pyro.bench.storing import DamagedCell, read_cell, read_cells
from bayeslora_pyro.bench.tiers import Job
from bayeslora_pyro.methods import METHODS, lora

from .bench_cells import PROTOCOL, cell_of, raw_of, write_made_up


def test_comes_back_as_it_was(tmp_path):
    folder = write_made_up(tmp_path, cell_of("blob"))
    stored = read_cell(folder)
    assert (stored.cell, stored.protocol) == (cell_of("blob"), PROTOCOL)
    expected = raw_of(seed=40)
    assert list(stored.raw()) == sorted(expected) or set(stored.raw()) == set(expected)
    assert all(torch.equal(stored.raw()[name].log_probs, own.log_probs) for name, own in expected.items())
    assert stored.rows[0]["set"] == "test"
    assert stored.costs["step"] == {"ratio": 1.1}
    assert sorted(path.name for path in folder.iterdir()) == [
        "cell.json",
        "costs.json",
        "metrics.json",
        "predictions.safetensors",
    ]


def _truncate(folder):
    path = folder / "predictions.safetensors"
    path.write_bytes(path.read_bytes()[:-9])


def _edit(folder):
    path = folder / "metrics.json"
    rows = json.loads(path.read_text())
    rows[0]["nll"] = 0.001
    path.write_text(json.dumps(rows))


def _lose(folder):
    (folder / "costs.json").unlink()


def _break(folder):
    (folder / "cell.json").write_text("{")


def _age(folder):
    record = json.loads((folder / "cell.json").read_text())
    (folder / "cell.json").write_text(json.dumps(record | {"format": 0}))


@pytest.mark.parametrize("damage", [_truncate, _edit, _lose, _break, _age])
def test_a_damaged_cell_is_refused_and_done_anew(damage, tmp_path):
    folder = write_made_up(tmp_path, cell_of())
    jobs = [Job(cell_of(), PROTOCOL)]
    assert left_to_do(jobs, tmp_path) == []
    damage(folder)
    with pytest.raises(DamagedCell, match="lora_seed0 is damaged"):
        read_cell(folder)
    with pytest.raises(ValueError, match="run the benchmark again"):
        read_cells(tmp_path)
    assert left_to_do(jobs, tmp_path) == jobs


def test_a_killed_write_leaves_no_cell(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(storing, "_digest", killed)
    with pytest.raises(KeyboardInterrupt):
        write_made_up(tmp_path, cell_of())
    with pytest.raises(FileNotFoundError):
        read_cell(tmp_path / "cells" / cell_of().name)
    assert left_to_do([Job(cell_of(), PROTOCOL)], tmp_path)
    with pytest.raises(ValueError, match="holds no finished cell"):
        read_cells(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 11}, "num_steps=10, and now it is 11"),
        ({"dtype": "bfloat16"}, "dtype='float32', and now it is 'bfloat16'"),
        ({"blob_compat": True}, "blob_compat=False, and now it is True"),
    ],
)
def test_a_cell_of_another_protocol_is_not_taken(change, message, tmp_path):
    write_made_up(tmp_path, cell_of())
    jobs = [Job(cell_of(), PROTOCOL.changed(**change))]
    with pytest.raises(OtherCell, match=message):
        left_to_do(jobs, tmp_path)
    assert left_to_do(jobs, tmp_path, overwrite=True) == jobs


def test_a_cell_of_a_method_that_has_changed_since_is_not_taken(tmp_path, monkeypatch):
    write_made_up(tmp_path, cell_of())
    jobs = [Job(cell_of(), PROTOCOL)]

    def build(*args, **options):
        recipe = lora.build(*args, **options)
        return dataclasses.replace(recipe, config=recipe.config.replace(weight_decay=0.5))

    monkeypatch.setitem(METHODS, "lora", build)
    with pytest.raises(OtherCell, match=r"method\.fit\.weight_decay=0\.01, and now it is 0\.5"):
        left_to_do(jobs, tmp_path)


def test_a_check_of_the_protocol_alone_would_miss_it(tmp_path, monkeypatch):
    monkeypatch.setattr(contenders, "describe_guide", lambda _: None)
    write_made_up(tmp_path, cell_of())
    monkeypatch.undo()
    with pytest.raises(OtherCell, match=r"method\.guide"):
        left_to_do([Job(cell_of(), PROTOCOL)], tmp_path)


def test_a_dtype_left_open_is_that_of_the_folder(tmp_path, monkeypatch):
    open_job = Job(cell_of(), PROTOCOL.changed(dtype=FASTER))
    monkeypatch.setattr("bayeslora_pyro.bench.running.faster_dtype", lambda: torch.bfloat16)
    assert with_dtype([open_job], tmp_path)[0].protocol.dtype == "bfloat16"
    write_made_up(tmp_path, cell_of("blob"))
    other = Job(cell_of("blob"), open_job.protocol)
    assert [job.protocol.dtype for job in with_dtype([open_job, other], tmp_path)] == ["float32"] * 2


def test_processes_work_beside_one_another_and_die_alone():
    outcomes = {outcome.given: outcome for outcome in run_processes(math.sqrt, [4.0, -1.0, 9.0], 2)}
    assert {given: outcome.result for given, outcome in outcomes.items()} == {4.0: 2.0, -1.0: None, 9.0: 3.0}
    assert outcomes[-1.0].error == "ValueError: math domain error"
    (dead,) = run_processes(os._exit, [9], 2)
    assert "ended with code 9" in dead.error


def test_ray_does_the_same_with_two_workers():
    outcomes = {outcome.given: outcome for outcome in run_ray(math.sqrt, [4.0, -1.0, 9.0], 2)}
    assert {given: outcome.result for given, outcome in outcomes.items()} == {4.0: 2.0, -1.0: None, 9.0: 3.0}
    assert "math domain error" in outcomes[-1.0].error


def test_a_wrong_engine_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no engine 'slurm': use one of processes, ray"):
        run_jobs([], tmp_path, engine="slurm")


def is_running(process: int) -> bool:
    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ends_within(process: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while is_running(process) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not is_running(process)


def test_a_process_ends_with_the_one_that_was_killed(tmp_path):
    note, root = tmp_path / "process", Path(__file__).resolve().parents[1]
    code = f"from tests.bench_cells import *; list(run_processes(hang, [{str(note)!r}], 1))"
    imports = "from bayeslora_pyro.bench.engines import run_processes"
    parent = subprocess.Popen([sys.executable, "-c", f"{imports}; {code}"], cwd=root)
    try:
        deadline = time.monotonic() + 120
        while not (note.exists() and note.read_text(encoding="utf-8")) and time.monotonic() < deadline:
            time.sleep(0.1)
        worker = int(note.read_text(encoding="utf-8"))
        assert not ends_within(worker, 1)
        parent.kill()
        parent.wait()
        assert ends_within(worker, 30)
    finally:
        parent.kill()
        parent.wait()
