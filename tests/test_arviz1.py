"""The last step, arrays to ArviZ, under ArviZ 1.x in an environment of its own, without torch."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bayeslora_pyro.diagnostics import arrays

SCRIPT = Path(__file__).with_name("arviz1_check.py")
SPEC = importlib.util.spec_from_file_location("arviz1_check", SCRIPT)
check = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check)

REQUIREMENTS = [
    "arviz==1.3.0",
    "arviz-base==1.3.1",
    "arviz-stats==1.3.3",
    "arviz-plots==1.3.2",
    "h5netcdf==1.8.2",
    "h5py==3.16.0",
]
CURE = (
    "ArviZ 1.x needs Python 3.12 or later and none was found. Install python3.12, or name an interpreter in "
    "BAYESLORA_PYTHON312; pytest --ignore=tests/test_arviz1.py leaves this test out knowingly."
)


def find_python():
    """Return a Python 3.12 that runs: a shim on the path may not."""
    named = [os.environ.get("BAYESLORA_PYTHON312"), shutil.which("python3.12")]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    named += sorted(map(str, pyenv.glob("3.12*/bin/python")), reverse=True)
    if shutil.which("uv"):
        found = subprocess.run(["uv", "python", "find", "3.12"], capture_output=True, text=True)
        named.append(found.stdout.strip())
    for python in filter(None, named):
        probe = [python, "-c", "import sys, venv; sys.exit(sys.version_info < (3, 12))"]
        if subprocess.run(probe, capture_output=True).returncode == 0:
            return python
    pytest.fail(CURE)


@pytest.fixture(scope="module")
def python(request, tmp_path_factory):
    """Return an interpreter with ArviZ 1.x: this one, or that of an environment made once and kept."""
    if int(importlib.metadata.version("arviz").split(".")[0]) >= 1:
        return sys.executable
    name, cache = "-".join(REQUIREMENTS).replace("==", "-"), getattr(request.config, "cache", None)
    folder = Path(cache.mkdir(name)) if cache else tmp_path_factory.mktemp("environment")
    ready, interpreter = folder / "ready", folder / "venv" / "bin" / "python"
    if not ready.exists():
        subprocess.run([find_python(), "-m", "venv", "--clear", folder / "venv"], check=True)
        install = [interpreter, "-m", "pip", "install", "--quiet", "--no-compile", *REQUIREMENTS]
        done = subprocess.run(install, capture_output=True, text=True)
        assert done.returncode == 0, f"could not install {REQUIREMENTS}:\n{done.stderr}"
        ready.touch()
    return str(interpreter)


@pytest.fixture(scope="module")
def seen(python, tmp_path_factory):
    """Run the check there on a file written here."""
    folder = tmp_path_factory.mktemp("arviz1")
    foreign, own = folder / "here.nc", folder / "there.nc"
    arrays.save_arviz(check.example(arrays), foreign)
    command = [python, SCRIPT, arrays.__file__, foreign, own]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"own": own}


def test_version_without_torch(seen, python):
    assert int(seen["arviz"].split(".")[0]) >= 1
    assert seen["container"] == "DataTree"
    assert python == sys.executable or not seen["torch"]


def test_files_cross_the_versions(seen):
    assert seen["same_own"]
    assert seen["same_foreign"]
    assert check.same(arrays, check.example(arrays), arrays.load_arviz(seen["own"]))


def test_arviz_can_use_it(seen):
    assert seen["adapters"] == ["layer.0.query", "layer.0.value", "layer.1.query"]
    assert seen["summary"] == [f"update_norm[{name}]" for name in seen["adapters"]]
    assert seen["elpd"] == pytest.approx(-3.2, abs=0.3)


def test_leave_one_out_is_the_same(seen):
    scores = -np.random.default_rng(2).random((2, 40, 6))
    estimates = {"low": arrays.leave_one_out(1.3 * scores), "high": arrays.leave_one_out(scores)}
    for name, row in arrays.compare_loo(estimates).items():
        assert seen["loo"][name] == {key: pytest.approx(value, abs=0.05) for key, value in row.items()}
    assert seen["loo"]["low"]["elpd_diff"] < 0 == seen["loo"]["high"]["elpd_diff"]
    assert seen["loo_alone"].keys() == {"high"}


def test_khat_is_the_same_statistic(seen):
    log_weights = 2 * np.random.default_rng(1).normal(size=4000)
    assert seen["khat"] == pytest.approx(arrays.pareto_khat(log_weights), abs=0.02)
    assert seen["khat"] > 0.5
    assert seen["khat_equal"] == 0
    assert seen["khat_dominated"] == float("inf")
