"""The benchmark with two modes: what it promises, on few steps, and that its bound is one."""

import json
import math
import runpy
import sys
from pathlib import Path

import pyro
import pytest

from bayeslora_pyro.normal_mixture import NormalMixture

SCRIPT = str(Path(__file__).resolve().parents[1] / "benchmarks" / "bimodal.py")


@pytest.fixture
def script():
    with pyro.settings.context(module_local_params=True):
        yield runpy.run_path(SCRIPT)


def gap(script, name, steps=600):
    row = script["measure"](script["CONTENDERS"][name], steps, num_draws=64)
    evidence = script["log_evidence"](script["toy"]()[1])
    assert row["elbo"] - 4 * row["standard_error"] < evidence
    return evidence - row["elbo"]


def test_evidence_does_not_depend_on_the_grid(script):
    batch = script["toy"]()[1]
    evidence = script["log_evidence"](batch)
    for points, reach in ((401, 6.0), (801, 5.0)):
        assert script["log_evidence"](batch, points, reach) == pytest.approx(evidence, abs=1e-6)


def test_mean_field_is_below_and_a_mixture_is_not(script):
    assert gap(script, "mean_field", steps=100) > 0.3
    assert gap(script, "mixture of 4") < 0.05


def test_a_density_too_low_would_be_caught(script, monkeypatch):
    log_prob = NormalMixture.log_prob
    monkeypatch.setattr(NormalMixture, "log_prob", lambda self, value: log_prob(self, value) - math.log(4))
    with pytest.raises(AssertionError):
        gap(script, "mixture of 4", steps=200)


def test_json_is_one_object(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bimodal.py", "--json", "--steps", "3", "--seeds", "2"])
    runpy.run_path(SCRIPT, run_name="__main__")
    printed = json.loads(capsys.readouterr().out)
    rows = {name: row for name, row in printed.items() if isinstance(row, dict)}
    assert rows.keys() == {"mean_field", "full_rank", "mixture of 2", "mixture of 4", "flow"}
    for row in rows.values():
        assert row["gap"] == min(row["gaps"])
        assert printed["log_evidence"] - row["elbo"] == pytest.approx(row["gap"])
