"""Training-free Bayesianization: a case worked by hand, and a search that never violates its tolerance."""

import math
from types import SimpleNamespace

import pytest
import torch

from bayeslora_pyro import METHODS, BayesianLora, DeltaGuide, Posterior
from bayeslora_pyro.loading import first_batches
from bayeslora_pyro.methods import tfb
from bayeslora_pyro.methods.tfb import Bayesianize, largest_within, rotate
from bayeslora_pyro.models import Likelihood, Regression
from bayeslora_pyro.types import FactorStack

from .tiny import tiny_batch, tiny_bert

STACKS = (FactorStack("A_2x2", "A", (2, 2), ("q",)), FactorStack("B_3x2", "B", (3, 2), ("q",)))
A = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
B = torch.tensor(
    [[0.0, 4.0], [2.0, 0.0], [0.0, 0.0]], dtype=torch.float64
)  # d = (4, 2), V swaps the rows of A


def trained(**options) -> Posterior:
    model = BayesianLora(tiny_bert(**options), "point", num_data=10)
    return Posterior(model, DeltaGuide(model))


def data() -> list:
    return [tiny_batch(seed=seed) for seed in range(2)]


def answered(posterior: Posterior) -> list:
    """The data, with what the posterior itself answers for labels: noise can only make it less sure."""
    return [batch | {"labels": posterior.predict([batch], 1).probs.argmax(-1)} for batch in data()]


def nll(posterior: Posterior, batches: list, num_draws: int) -> float:
    scores = posterior.log_likelihood(batches, num_draws, 0).double()
    return -(scores.logsumexp(0) - math.log(num_draws)).mean().item()


def test_a_case_worked_by_hand() -> None:
    turned, unit_scales = rotate(STACKS, {"A_2x2": A[None], "B_3x2": B[None]})
    sign = turned["A_2x2"][0, :, :1].sign()  # of the singular vectors, which is free
    torch.testing.assert_close(sign * turned["A_2x2"][0], torch.tensor([[3.0, 4.0], [1.0, 2.0]]).double())
    wanted = torch.tensor([[4.0, 0.0], [0.0, 2.0], [0.0, 0.0]]).double()
    torch.testing.assert_close(turned["B_3x2"][0] * sign.T, wanted)
    torch.testing.assert_close(unit_scales["A_2x2"][0], torch.tensor([[0.25], [0.5]]).double())


@pytest.mark.parametrize("shape", [(5, 3), (2, 3)], ids=["tall", "wide"])
def test_noise_is_isotropic_among_the_updates(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    stacks = (FactorStack("A", "A", (3, 4), ("q",)), FactorStack("B", "B", shape, ("q",)))
    a = torch.randn(1, 3, 4, generator=generator, dtype=torch.float64)
    b = torch.randn(1, *shape, generator=generator, dtype=torch.float64)
    turned, unit_scales = rotate(stacks, {"A": a, "B": b})
    torch.testing.assert_close(turned["B"] @ turned["A"], b @ a)
    root = (
        turned["B"][0] * unit_scales["A"][0].T
    )  # what noise of each row of A' adds to a column of the update
    projection = b[0] @ torch.linalg.pinv(b[0])
    torch.testing.assert_close(root @ root.T, projection)
    unturned = b[0] * unit_scales["A"][0].T  # the same noise on A itself
    assert not torch.allclose(unturned @ unturned.T, projection, atol=0.1)


def last_violating(holds, low: float, high: float, num_steps: int) -> float:
    """The published search, which returns the last value that it saw violate the tolerance."""
    best = high
    for _ in range(num_steps):
        middle = (low + high) / 2
        if holds(middle):
            low = middle
        else:
            best = high = middle
    return best


@pytest.mark.parametrize("edge", [0.0015, 0.03, 0.5, 2.0])
@pytest.mark.parametrize("num_steps", [1, 5, 9])
def test_the_search_never_returns_what_violates_the_tolerance(edge: float, num_steps: int) -> None:
    found = largest_within(lambda sigma: sigma <= edge, 1e-3, 1.0, num_steps=num_steps)
    assert found <= edge
    assert found * 1000 ** (0.5**num_steps) >= min(edge, 1.0) * (1 - 1e-12)
    if edge < 1:
        assert last_violating(lambda sigma: sigma <= edge, 1e-3, 1.0, num_steps) > edge


def test_the_search_returns_only_what_it_has_seen_hold() -> None:
    seen: list[float] = []

    def holds(sigma: float) -> bool:  # not monotone
        good = 0.2 < sigma < 0.3 or sigma < 0.01
        seen.extend([sigma] if good else [])
        return good

    assert largest_within(holds, 1e-3, 1.0, num_steps=8) in seen
    with pytest.raises(ValueError, match=r"Not even noise of 0\.001 stays within the tolerance"):
        largest_within(lambda sigma: False, 1e-3, 1.0)


@pytest.mark.parametrize("tolerance", [0.003, 0.05])
def test_what_it_finds_costs_no_more_than_the_tolerance(tolerance: float) -> None:
    fitted = trained()
    batches = answered(fitted)
    noisy = Bayesianize(tolerance, num_draws=4, num_steps=4)(fitted, batches)
    sigma = noisy.metadata["tfb"]["sigma"]
    assert 1e-4 < sigma < 1
    assert nll(noisy, batches, 4) <= nll(fitted, batches, 1) * (1 + tolerance) + 1e-6
    first = noisy.model.stacks[0]
    scales = noisy.guide.get_posterior(first).stddev
    d = torch.linalg.svdvals(fitted.mean_adapter()["B_16x2"])
    torch.testing.assert_close(scales, (sigma / d)[..., None].expand_as(scales))


@pytest.mark.parametrize("metric", ["nll", "accuracy"])
def test_a_search_that_leaves_what_is_lost_finds_the_same(metric: str, monkeypatch) -> None:
    fitted, looked_at = trained(), []
    batches = 4 * answered(fitted)
    name = {"nll": "log_likelihood", "accuracy": "predict"}[metric]
    right = getattr(Posterior, name)

    def counted(*arguments, **options):
        looked_at.append(arguments[1])
        return right(*arguments, **options)

    monkeypatch.setattr(Posterior, name, counted)
    found = []
    for unhurried in (False, True):
        if unhurried:  # as where a cost may be negative
            monkeypatch.setattr(tfb, "OF_PROBABILITIES", ())
        noisy = Bayesianize(0.01, metric, num_draws=4, num_steps=4)(fitted, batches)
        found.append((noisy.metadata["tfb"]["sigma"], len(looked_at)))
        looked_at.clear()
    assert found[0][0] == found[1][0]
    assert found[0][1] < found[1][1]


class Costing:
    """A posterior whose items cost what they are told to."""

    def __init__(self, likelihood) -> None:
        self.model = SimpleNamespace(likelihood=likelihood)

    def log_likelihood(self, batches, num_draws, seed):
        return -batches[0]["input_ids"].expand(num_draws, -1)


def check_a_later_item_may_make_up_for_it() -> None:
    batches = [{"input_ids": torch.tensor([cost]).double()} for cost in (10.0, -10.0)]
    assert Bayesianize()._cost(Costing(Regression()), batches, 2, limit=1.0) == pytest.approx(0.0)


def test_where_a_density_may_exceed_one_a_later_item_may_make_up_for_it(monkeypatch) -> None:
    check_a_later_item_may_make_up_for_it()
    monkeypatch.setattr(tfb, "OF_PROBABILITIES", Likelihood)  # the planted fault: leaving all the same
    with pytest.raises(AssertionError):
        check_a_later_item_may_make_up_for_it()


def test_the_mean_is_the_trained_lora_and_accuracy_may_decide() -> None:
    fitted = trained()
    noisy = Bayesianize(0.1, "accuracy", num_draws=4, num_steps=2)(fitted, data())
    for update in zip(*(p.mean_adapter().values() for p in (fitted, noisy)), strict=True):
        assert update[0].shape == update[1].shape
    products = [p.mean_adapter()["B_16x2"] @ p.mean_adapter()["A_2x16"] for p in (fitted, noisy)]
    torch.testing.assert_close(*products, rtol=1e-4, atol=1e-5)
    accuracies = [p.predict(data(), n).evaluate()["accuracy"] for p, n in ((fitted, 1), (noisy, 4))]
    assert accuracies[1] >= accuracies[0] - 0.1 - 1e-6


def test_an_untrained_lora_and_bad_settings_are_refused() -> None:
    recipe = METHODS["tfb"](tiny_bert(random_b=False), "classification", 10)
    with pytest.raises(ValueError, match="All factors B are zero"):
        recipe.finish(Posterior(recipe.model, recipe.guide), data())
    for options, message in (
        ({"tolerance": 0.0}, "tolerance should be positive"),
        ({"metric": "ece"}, "metric should be 'nll' or 'accuracy'"),
        ({"bounds": (1.0, 0.1)}, "bounds should be positive and in order"),
    ):
        with pytest.raises(ValueError, match=message):
            Bayesianize(**options)


def test_anchors_are_the_first_items_of_a_pass_which_leaves_the_loader_as_it_was() -> None:
    loader = torch.utils.data.DataLoader(
        [{"input_ids": torch.tensor([i])} for i in range(10)],
        2,
        shuffle=True,
        generator=torch.Generator().manual_seed(1),
    )
    before, own = torch.get_rng_state(), loader.generator.get_state()
    rows = [first_batches(loader, 3, num_items) for num_items in (5, 5, 99)]
    sizes = [sum(len(batch["input_ids"]) for batch in batches) for batches in rows]
    assert sizes == [6, 6, 10]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(*rows[:2], strict=True))
    assert sorted(int(i) for batch in rows[2] for i in batch["input_ids"]) == list(range(10))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(loader.generator.get_state(), own)
