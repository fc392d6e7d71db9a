"""The peak of memory of `Posterior.predict` against its budget, for more and more draws."""

from __future__ import annotations

import argparse
import datetime
import json
from typing import Any

import torch
from cases import CASES, guide_of
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bayeslora_pyro import BayesianLora, Posterior

DRAWS = (1, 2, 4, 8, 16, 32, 64, 128)
BAR = 1.1
"""The share of the budget not to exceed."""


class LivePeak(TorchDispatchMode):
    """Adds up the bytes of the tensors that are made within it and still alive, and keeps the most there were."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.total = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation, and looks at what it has made."""
        outputs = function(*args, **(kwargs or {}))
        known = {
            leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)
        }
        for leaf in tree_leaves(outputs):
            if torch.is_tensor(leaf) and leaf.untyped_storage()._cdata not in known:
                self._add(leaf.untyped_storage())
        if self.total > self.peak:  # only now is it worth a look at what is gone
            self.alive = {key: pair for key, pair in self.alive.items() if not pair[0].expired()}
            self.total = sum(size for _, size in self.alive.values())
            self.peak = max(self.peak, self.total)
        return outputs

    def _add(self, storage: torch.UntypedStorage) -> None:
        _, before = self.alive.get(storage._cdata, (None, 0))
        self.alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.total += storage.nbytes() - before


def measure(model_name: str, budget: int, prior: str = "inducing") -> dict[str, Any]:
    """The peaks in megabytes, of all that a prediction makes, draws of the factors among it."""
    case = CASES[model_name]("cpu")
    model = BayesianLora(case.peft_model, prior, case.likelihood)
    posterior = Posterior(model, guide_of(model, "mean_field"))
    draw = sum(value.nbytes for value in posterior.weights(1).values())
    rows = {}
    for draws in DRAWS:
        with LivePeak() as live:
            posterior.predict([case.batch, case.batch], num_draws=draws, memory_budget=budget)
        rows[str(draws)] = {
            "peak_mb": round(live.peak / 1e6, 2),
            "share_of_budget": round(live.peak / budget, 3),
            "held": 2 * draws * draw <= budget,
        }
    worst = max(row["share_of_budget"] for row in rows.values())
    return {
        "worst": worst,
        "bar": BAR,
        "budget_mb": budget / 1e6,
        "draw_mb": round(draw / 1e6, 3),
        "draws": rows,
    }


def main() -> None:
    """Parses the command line, measures, and prints a table or one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--model", nargs="+", choices=CASES, default=["minilm"], help="what to measure")
    parser.add_argument("--budget", type=int, default=2**25, help="the budget in bytes (default: 2**25)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {name: measure(name, options.budget) for name in options.model}
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    if options.json:
        print(json.dumps(rows | {"date": date, "torch": torch.__version__}))
        return
    for name, row in rows.items():
        print(f"{name}: at most {row['worst']} of the budget of {row['budget_mb']:.1f} MB, bar {row['bar']}")
        for draws, figures in row["draws"].items():
            print(f"  {draws:>4} draws  {figures}")


if __name__ == "__main__":
    main()
