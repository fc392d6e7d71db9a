"""What must hold of ``diagnostics/arrays.py`` under any ArviZ: run as a script where there is no torch.

Usage: ``python arviz1_check.py ARRAYS.py FOREIGN.nc OWN.nc``; another ArviZ has written the foreign file.
"""

import importlib.util
import json
import sys
import warnings

import numpy as np


def load(path):
    """Import a module by its file."""
    spec = importlib.util.spec_from_file_location("arrays", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def example(arrays):
    """Build a container with every group, from numbers that are the same everywhere."""
    rng = np.random.default_rng(0)
    groups = {
        "posterior": {
            "A_2x6.V": rng.normal(size=(2, 40, 3, 2, 2)).astype(np.float32),
            "B_6x2.V": rng.normal(size=(2, 40, 2, 2, 2)).astype(np.float32),
            "update_norm": rng.random((2, 40, 3)),
        },
        "prior": {"update_norm": rng.random((2, 40, 3))},
        "sample_stats": {"lp": rng.normal(size=(2, 40))},
        "posterior_predictive": {"log_probs": np.log(np.full((2, 40, 6, 2), 0.5))},
        "log_likelihood": {"y": -rng.random((2, 40, 6))},
        "observed_data": {"y": np.arange(6) % 2},
        "constant_data": {"elbo": rng.normal(size=(2, 5))},
    }
    dims = {
        "A_2x6.V": ["adapter", "inducing_row", "inducing_col"],
        "B_6x2.V": ["adapter@B_6x2", "inducing_row", "inducing_col"],
        "update_norm": ["adapter"],
        "log_probs": ["item", "label"],
        "y": ["item"],
        "elbo": ["chain", "step"],
    }
    coords = {
        "adapter": ["layer.0.query", "layer.0.value", "layer.1.query"],
        "adapter@B_6x2": ["layer.0.query", "layer.1.query"],
        "label": ["negative", "positive"],
        "step": [0, 10, 20, 30, 40],
    }
    attrs = {"method": "bayesian-lora", "num_data": 400, "frozen": True, "note": None}
    return arrays.from_arrays(groups, dims, coords, attrs)


def same(arrays, left, right):
    """Tell whether two containers hold the same groups, values, coordinates and attributes."""
    mine, theirs = arrays.datasets(left), arrays.datasets(right)
    attrs = dict(left.attrs) == dict(right.attrs)
    return attrs and mine.keys() == theirs.keys() and all(mine[name].equals(theirs[name]) for name in mine)


def main(source, foreign, own):
    """Build, save, reload and use a container, and print what was seen as JSON."""
    warnings.simplefilter("error")
    arrays = load(source)
    az = arrays.arviz()
    container = example(arrays)
    reloaded = arrays.load_arviz(arrays.save_arviz(container, own))
    summary = az.summary(reloaded, var_names=["update_norm"])
    with warnings.catch_warnings():
        # Forty draws are few for leave-one-out, and ArviZ says so.
        warnings.simplefilter("ignore")
        loo = az.loo(reloaded)
    scores = -np.random.default_rng(2).random((2, 40, 6))
    estimates = {"low": arrays.leave_one_out(1.3 * scores), "high": arrays.leave_one_out(scores)}
    log_weights = 2 * np.random.default_rng(1).normal(size=4000)
    seen = {
        "arviz": az.__version__,
        "torch": importlib.util.find_spec("torch") is not None,
        "container": type(container).__name__,
        "same_own": same(arrays, container, reloaded),
        "same_foreign": same(arrays, container, arrays.load_arviz(foreign)),
        "adapters": [str(name) for name in az.from_netcdf(own)["posterior"]["adapter"].values],
        "summary": list(summary.index),
        "elpd": float(getattr(loo, "elpd", getattr(loo, "elpd_loo", float("nan")))),
        "loo": arrays.compare_loo(estimates),
        "loo_alone": arrays.compare_loo({"high": estimates["high"]}),
        "khat": arrays.pareto_khat(log_weights),
        "khat_equal": arrays.pareto_khat(np.zeros(40)),
        "khat_dominated": arrays.pareto_khat(1e5 * log_weights),
    }
    sys.stdout.write(json.dumps(seen, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])
