"""Flipout: what the operator does to activations, the law of what each item sees, and what may be flipped."""

from itertools import product

import pytest
import torch

from bayeslora_pyro.adapters import FlipoutOperator
from bayeslora_pyro.adapters.flipout import Flipout, _signs
from bayeslora_pyro.guides import GUIDES
from bayeslora_pyro.models import BayesianLora

from .exact import close, rand
from .noise import affine
from .small_priors import ALL
from .tiny import tiny_bert

pytestmark = pytest.mark.usefixtures("local_parameters")


def signs(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, shape, generator=generator, dtype=torch.float64) * 2 - 1


PATTERNS = torch.tensor(list(product((1.0, -1.0), repeat=4)), dtype=torch.float64)
"""All signs of a matrix of two rows and two columns: of its outputs, then of its inputs."""

MEAN, DEVIATIONS = rand(2, 2, seed=1), rand(2, 2, seed=2).exp()


def seen(make, noise):
    """The dense weight that each of the patterns makes the operator apply. Shape `(16, 2, 2)`."""
    operator = make(MEAN, DEVIATIONS * noise, PATTERNS[:, :2], PATTERNS[:, 2:])
    return operator(torch.eye(2, dtype=torch.float64).expand(16, 2, 2)).mT


def check_law(make):
    """Under each pattern the weight is a draw of q; under different ones draws are uncorrelated, and their squares."""
    units = torch.eye(4, dtype=torch.float64).reshape(4, 2, 2)
    mean = seen(make, torch.zeros(2, 2, dtype=torch.float64))
    roots = torch.stack([seen(make, unit) - mean for unit in units], -1).reshape(16, 4, 4)
    close(mean, MEAN.expand(16, 2, 2))
    close(roots @ roots.mT, DEVIATIONS.flatten().square().diag().expand(16, 4, 4))
    flips = (seen(make, 1.0) - MEAN).flatten(1) / DEVIATIONS.flatten()
    close(flips.mean(0), torch.zeros(4, dtype=torch.float64))
    close(flips.mT @ flips / 16, torch.eye(4, dtype=torch.float64))


FAULTS = {
    "no mean apart": lambda m, d, s, r: FlipoutOperator(0 * m, m + d, s, r),
    "signs for outputs only": lambda m, d, s, r: FlipoutOperator(m, d, s, torch.ones_like(r)),
    "signs for inputs only": lambda m, d, s, r: FlipoutOperator(m, d, torch.ones_like(s), r),
    "one pattern for all": lambda m, d, s, r: FlipoutOperator(m, d, s[:1].expand_as(s), r[:1].expand_as(r)),
    "coins for signs": lambda m, d, s, r: FlipoutOperator(m, d, (s + 1) / 2, r),
}


class TestOperator:
    def test_each_item_sees_a_draw(self):
        check_law(FlipoutOperator)

    @pytest.mark.parametrize("fault", FAULTS)
    def test_planted_fault(self, fault):
        with pytest.raises(AssertionError):
            check_law(FAULTS[fault])

    def test_correlated_entries_would_change_their_law(self):
        root = rand(4, 4, seed=3)
        flips = (PATTERNS[:, :2, None] * PATTERNS[:, None, 2:]).flatten(1)
        covariances = (flips[:, :, None] * root) @ (flips[:, :, None] * root).mT
        changed = (covariances - root @ root.T).abs().amax((1, 2)) > 0.1
        assert changed.sum() == 12  # all but those that flip all entries or none

    @pytest.mark.parametrize("between", [(), (5,), (2, 3)], ids=["items", "tokens", "more"])
    @pytest.mark.parametrize("draws", [1, 2, 3])
    def test_it_is_a_dense_weight_for_each_item(self, draws, between):
        mean, deviation = rand(4, 3, seed=1), rand(draws, 4, 3, seed=2)
        out_signs, in_signs, inputs = signs(6, 4, seed=3), signs(6, 3, seed=4), rand(6, *between, 3, seed=5)
        outputs = FlipoutOperator(mean, deviation if draws > 1 else deviation[0], out_signs, in_signs)(inputs)
        for item in range(6):
            flip = torch.outer(out_signs[item], in_signs[item])
            weight = mean + deviation[item * draws // 6] * flip
            close(outputs[item], inputs[item] @ weight.T)

    def test_it_works_in_the_precision_of_the_factor(self):
        operator = FlipoutOperator(MEAN, DEVIATIONS, PATTERNS[:, :2], PATTERNS[:, 2:])
        inputs = rand(16, 3, 2).bfloat16()
        close(operator(inputs), operator(inputs.double()))

    def test_activations_without_a_row_per_item_are_refused(self):
        operator = FlipoutOperator(MEAN, DEVIATIONS, PATTERNS[:, :2], PATTERNS[:, 2:])
        with pytest.raises(
            ValueError, match=r"each of the 16 rows .* shape \(1, 32, 2\): fit with draw_per_item=False"
        ):
            operator(rand(1, 32, 2))


def test_signs_are_fair_and_differ_between_items_factors_and_sides():
    torch.manual_seed(0)
    sides = [_signs((3, 400, size), rand(1)) for size in (2, 500)]
    for side in sides:
        assert set(side.unique().tolist()) == {-1.0, 1.0}
        assert side.mean().abs() < 5 / side.numel() ** 0.5
    assert not torch.equal(sides[1][0], sides[1][1])
    assert not torch.equal(sides[1][0, 0], sides[1][0, 1])


FACTORS_THEMSELVES = {
    name for name in ALL if name not in ("point", "relative_noise", "rank_space") and "inducing" not in name
}


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("prior", ALL)
def test_factors_are_flipped_where_their_entries_are_independent(prior, guide):
    model = BayesianLora(tiny_bert(hidden=4, num_layers=1, dtype=torch.float64), ALL[prior]())
    family = GUIDES[guide](model)
    rules = family.per_item()
    has_own = guide in ("mean_field", "squared_scale", "dropout") and prior in FACTORS_THEMSELVES
    assert set(rules) == ({stack.name for stack in model.stacks} if has_own else set())
    for name, rule in rules.items():
        if isinstance(rule, Flipout):
            mean, root = affine(lambda name=name: family()[name])
            covariance = root @ root.T
            close(rule.centre.flatten(), mean)
            close(covariance, covariance.diag().diag())
