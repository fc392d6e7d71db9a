"""How uncertainty finds errors and shifts, and how sure a figure is, against brute force and closed forms."""

import itertools

import pytest
import torch

from bayeslora_pyro import metrics

from .test_metrics import binary, draws


class TestSelective:
    def test_auroc_brute_force_with_ties(self):
        generator = torch.Generator().manual_seed(0)
        inside = torch.randint(5, (40,), generator=generator).double()
        outside = torch.randint(2, 8, (30,), generator=generator).double()
        pairs = [(o > i) + 0.5 * (o == i) for i in inside.tolist() for o in outside.tolist()]
        assert metrics.auroc(inside, outside) == pytest.approx(sum(pairs) / 1200)
        # A sigmoid, as torchmetrics would apply, cannot tell scores of a hundred apart.
        assert metrics.auroc(inside + 100, outside + 100) == pytest.approx(sum(pairs) / 1200)

    @pytest.mark.parametrize(
        ("inside", "outside", "value"), [([0, 1], [2, 3], 1), ([2], [1], 0), ([1, 1], [1], 0.5)]
    )
    def test_auroc_limits(self, inside, outside, value):
        assert metrics.auroc(torch.tensor(inside).float(), torch.tensor(outside).float()) == value

    def test_risk_coverage_brute_force(self):
        log_probs, labels = draws(num_items=50)
        top, answers = log_probs.exp().mean(0).max(-1)
        order = top.argsort(descending=True).tolist()
        wrong = (answers != labels).tolist()
        expected = [sum(wrong[i] for i in order[:k]) / k for k in range(1, 51)]
        coverage, risk = metrics.risk_coverage(log_probs, labels)
        assert risk.tolist() == pytest.approx(expected)
        assert coverage.tolist() == pytest.approx([k / 50 for k in range(1, 51)])
        assert metrics.aurc(log_probs, labels) == pytest.approx(sum(expected) / 50)
        assert risk[-1] == pytest.approx(1 - metrics.accuracy(log_probs, labels))

    def test_ties_are_answered_in_random_order(self):
        correct = [True, False, True, False, False]
        log_probs, labels = binary([0.9, 0.8, 0.8, 0.8, 0.6], correct)
        curves = []
        for middle in itertools.permutations(correct[1:4]):
            wrong = [not right for right in (correct[0], *middle, correct[4])]
            curves.append([sum(wrong[:k]) / k for k in range(1, 6)])
        expected = [sum(values) / len(curves) for values in zip(*curves, strict=True)]
        assert metrics.risk_coverage(log_probs, labels)[1].tolist() == pytest.approx(expected)
        flipped = metrics.aurc(log_probs.flip(0), labels.flip(0))
        assert flipped == pytest.approx(metrics.aurc(log_probs, labels))

    @pytest.mark.parametrize(("correct", "value"), [([True] * 5, 0), ([False] * 5, 1)])
    def test_aurc_limits(self, correct, value):
        assert metrics.aurc(*binary([0.9, 0.8, 0.7, 0.7, 0.6], correct)) == value


class TestBootstrap:
    def test_interval_of_a_mean(self):
        values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        low, high = metrics.bootstrap(lambda x: float(x.mean()), values, num_resamples=2000)
        error = 1.96 * float(values.std()) / 20
        assert low == pytest.approx(float(values.mean()) - error, abs=0.01)
        assert high == pytest.approx(float(values.mean()) + error, abs=0.01)

    def test_items_stay_together_and_seeds_count(self):
        log_probs, labels = draws()
        arguments = (metrics.accuracy, metrics.mean_log_probs(log_probs), labels)
        state = torch.get_rng_state()
        interval = metrics.bootstrap(*arguments, num_resamples=200, seed=3)
        assert torch.equal(torch.get_rng_state(), state)
        assert interval == metrics.bootstrap(*arguments, num_resamples=200, seed=3)
        assert interval != metrics.bootstrap(*arguments, num_resamples=200, seed=4)
        assert interval[0] <= metrics.accuracy(log_probs, labels) <= interval[1]
