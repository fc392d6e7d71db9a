"""How a fit stops when something is wrong: with the step and the site, at the last good state."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from bayeslora_pyro.checkpoints import read_tensors
from bayeslora_pyro.guides import GUIDES, Guide, MeanFieldGuide
from bayeslora_pyro.inference import fit
from bayeslora_pyro.models import BayesianLora, InducingPrior

from .pairs import NUM_DATA, data, learned, pair
from .tiny import Batch, tiny_batch, tiny_bert


def with_nan_label(at: int) -> Iterator[Batch]:
    batch = tiny_batch("regression", items=4)
    for step in range(at + 1):
        yield batch | {"labels": batch["labels"] * (math.nan if step == at else 1.0)}


def regression() -> tuple[BayesianLora, Guide]:
    model = BayesianLora(tiny_bert(num_labels=1), InducingPrior(rows=3, cols=3), "regression", NUM_DATA)
    return model, MeanFieldGuide(model)


def test_nan_loss_names_step_and_site_and_leaves_the_last_good_state(tmp_path: Any) -> None:
    model, guide = regression()
    states = []
    note = lambda row: states.append({n: p.detach().clone() for n, p in learned(model, guide).items()})  # noqa: E731
    with pytest.raises(FloatingPointError, match=r"Step 3: the loss is nan.*'y'.*Lower learning_rate"):
        fit(
            model,
            guide,
            list(with_nan_label(3)),
            progress=False,
            checkpoint=tmp_path / "run",
            callbacks=[note],
        )
    tensors, header = read_tensors(tmp_path / "run")
    assert len(header["history"]) == len(states) == 3
    for name, value in states[-1].items():
        assert torch.equal(tensors[name], value)


def test_nan_divergence_names_its_site() -> None:
    model, guide = pair()
    with torch.no_grad():
        guide.get_parameter("B_16x2.log_scale").fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"Step 0: .*'B_16x2.V'"):
        fit(model, guide, data(), progress=False)


def test_locations_that_cannot_be_factorized_name_step_and_site(tmp_path: Any) -> None:
    """What a step too long does to them: rows so far apart, or so alike, that float64 does not see the nuggets."""
    model, guide = regression()
    locations = model.get_parameter("priors.AB.A_2x16.z_row")
    states: list[dict[str, Tensor]] = []

    def throw(row: dict[str, float]) -> None:
        with torch.no_grad():
            locations.fill_(1e20 if row["step"] == 1 else 1.0)
        states.append({name: p.detach().clone() for name, p in learned(model, guide).items()})

    message = r"Step 2: site 'A_2x16.W' cannot be computed \(linalg.cholesky: .*\)\. Lower learning_rate"
    batches, file = [tiny_batch("regression")], tmp_path / "run"
    with pytest.raises(FloatingPointError, match=message):
        fit(model, guide, batches, num_steps=9, progress=False, checkpoint=file, callbacks=[throw])
    tensors, header = read_tensors(file)
    assert len(header["history"]) == len(states) == 2
    for name, value in learned(model, guide).items():
        assert torch.equal(value, states[-1][name])
        assert torch.equal(value, tensors[name])


@pytest.mark.parametrize("guide", GUIDES)
def test_absurd_learning_rates_stop_the_fit(guide: str) -> None:
    for learning_rate in (10.0, 1e4, 1e20):
        with pytest.raises(FloatingPointError, match=r"Step \d+: .*'.*'.*Lower learning_rate"):
            fit(*pair(guide=guide), data(), num_steps=15, learning_rate=learning_rate, progress=False)


def test_broken_gradient_names_its_parameter_and_moves_nothing(tmp_path: Any) -> None:
    model, guide = pair()
    steps: list[int] = []
    parameter = guide.get_parameter("A_2x16.loc")
    parameter.register_hook(lambda gradient: gradient * (math.inf if len(steps) == 2 else 1.0))
    with pytest.raises(FloatingPointError, match=r"Step 2: the gradient of 'A_2x16.loc' is not finite"):
        fit(model, guide, data(), progress=False, checkpoint=tmp_path / "run", callbacks=[steps.append])
    tensors, header = read_tensors(tmp_path / "run")
    assert len(header["history"]) == 2
    assert torch.equal(tensors["guide.A_2x16.loc"], parameter)
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_empty_and_exhausted_loaders_are_refused() -> None:
    with pytest.raises(ValueError, match="loader yields no batch: give it at least one item"):
        fit(*pair(), [], progress=False)
    with pytest.raises(ValueError, match=r"nothing in pass 2: .*a generator can be gone through once"):
        fit(*pair(), iter(data()), progress=False)


def test_labels_out_of_range_are_refused_by_name() -> None:
    batch = tiny_batch() | {"labels": torch.tensor([0, 1, 2, 3, 0])}
    with pytest.raises(ValueError, match=r"labels reach from 0 to 3, and there are 3 classes"):
        fit(*pair(), [batch], progress=False)
