"""Metrics against brute force, closed forms and their edge cases."""

import math

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from bayeslora_pyro import metrics


def draws(num_draws=5, num_items=60, num_classes=4, seed=0, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(num_draws, num_items, num_classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(num_classes, (num_items,), generator=generator)
    return logits.log_softmax(-1), labels


def binary(confidences, correct):
    """Log-probabilities whose class 0 has the given probability, and labels that make it right or wrong."""
    top = torch.tensor(confidences, dtype=torch.float64)
    return torch.stack([top, 1 - top], -1).log(), 1 - torch.tensor(correct).long()


def brute_ece(probs, labels, num_bins):
    bins = [[] for _ in range(num_bins)]
    for row, label in zip(probs.tolist(), labels.tolist(), strict=True):
        top = max(row)
        index = min(int(top * num_bins + 1e-12), num_bins - 1)
        bins[index].append((top, row.index(top) == label))
    gaps = (abs(sum(c for c, _ in b) - sum(r for _, r in b)) for b in bins if b)
    return sum(gaps) / len(labels)


class TestScores:
    def test_brute_force(self):
        log_probs, labels = draws()
        probs = log_probs.exp().mean(0)
        rows = list(zip(probs.tolist(), labels.tolist(), strict=True))
        n = len(rows)
        right = sum(p.index(max(p)) == y for p, y in rows)
        assert metrics.accuracy(log_probs, labels) == pytest.approx(right / n)
        assert metrics.nll(log_probs, labels) == pytest.approx(-sum(math.log(p[y]) for p, y in rows) / n)
        expected = sum((q - (c == y)) ** 2 for p, y in rows for c, q in enumerate(p)) / n
        assert metrics.brier(log_probs, labels) == pytest.approx(expected)

    def test_average_is_of_probabilities(self):
        log_probs, labels = draws()
        planted = -log_probs.mean(0).gather(1, labels[:, None]).mean()
        assert metrics.nll(log_probs, labels) < float(planted) - 0.05
        assert metrics.mean_log_probs(log_probs).logsumexp(-1).abs().max() < 1e-12

    @pytest.mark.parametrize("name", ["accuracy", "nll", "brier", "ece", "aurc"])
    def test_one_definition_for_every_number_of_draws(self, name):
        metric = getattr(metrics, name)
        log_probs, labels = draws(num_draws=1)
        expected = metric(log_probs[0], labels)
        assert metric(log_probs, labels) == expected
        assert metric(log_probs.expand(7, -1, -1), labels) == pytest.approx(expected, abs=1e-12)

    def test_probability_zero(self):
        log_probs = torch.tensor([[0.0, -math.inf], [0.0, -math.inf]])
        labels = torch.tensor([0, 1])
        assert metrics.nll(log_probs, labels) == math.inf
        assert metrics.brier(log_probs, labels) == 1
        assert metrics.entropy(log_probs).tolist() == [0, 0]

    def test_evaluate(self):
        log_probs, labels = draws()
        result = metrics.evaluate_log_probs(log_probs, labels)
        keys = ["accuracy", "nll", "ece", "brier", "aurc", "n", "ece_10", "ece_20", "ece_adaptive"]
        assert list(result) == keys
        assert result["n"] == 60
        assert result["ece_10"] == metrics.ece(log_probs, labels, num_bins=10)
        assert all(type(value) in (int, float) for value in result.values())


class TestCalibration:
    @pytest.mark.parametrize("num_bins", [1, 2, 10, 15, 20])
    @pytest.mark.parametrize("num_classes", [2, 4])
    def test_ece_brute_force(self, num_bins, num_classes):
        log_probs, labels = draws(num_items=300, num_classes=num_classes)
        expected = brute_ece(log_probs.exp().mean(0), labels, num_bins)
        assert metrics.ece(log_probs, labels, num_bins) == pytest.approx(expected, abs=1e-12)

    @pytest.mark.parametrize("num_bins", [2, 10, 15])
    def test_ece_agrees_with_torchmetrics(self, num_bins):
        log_probs, labels = draws(num_items=300)
        probs = log_probs.exp().mean(0)
        expected = multiclass_calibration_error(probs, labels, num_classes=4, n_bins=num_bins)
        assert metrics.ece(log_probs, labels, num_bins) == pytest.approx(float(expected), abs=1e-6)

    @pytest.mark.parametrize("right", [0, 7, 20])
    @pytest.mark.parametrize("num_bins", [1, 15])
    @pytest.mark.parametrize("adaptive", [False, True])
    def test_certain_answers(self, right, num_bins, adaptive):
        log_probs, labels = binary([1.0] * 20, [True] * right + [False] * (20 - right))
        value = metrics.ece(log_probs, labels, num_bins, adaptive)
        assert value == pytest.approx(1 - right / 20, abs=1e-12)

    def test_certain_answers_share_the_last_bin(self):
        # torchmetrics gives a confidence of 1 a bin of its own and answers (1 + 0.04) / 2.
        log_probs, labels = binary([1.0, 0.96], [False, True])
        assert metrics.ece(log_probs, labels) == pytest.approx(0.48)
        alone = multiclass_calibration_error(log_probs.exp(), labels, num_classes=2)
        assert float(alone) == pytest.approx(0.52)
        assert metrics.ece(*binary([1.0, 0.6], [False, True]), num_bins=1) == pytest.approx(0.3)

    def test_probabilities_rounded_above_one(self):
        log_probs, labels = binary([1.0, 0.9, 0.8], [True, True, False])
        assert metrics.ece(log_probs + 1e-7, labels) == pytest.approx(
            metrics.ece(log_probs, labels), abs=1e-6
        )

    def test_bin_edges_are_closed_below(self):
        log_probs, labels = binary([0.5, 0.75, 0.75 - 1e-9, 1.0], [True, True, False, True])
        bins = metrics.reliability_bins(log_probs, labels, num_bins=4)
        assert bins.num_items.tolist() == [0, 0, 2, 2]
        assert bins.accuracy[2:].tolist() == [0.5, 1.0]
        assert bins.accuracy[:2].isnan().all()

    @pytest.mark.parametrize("num_bins", [1, 4, 15])
    def test_bins_add_up_to_the_error(self, num_bins):
        top = [0.5, 0.6, 0.6, 0.75, 0.8, 0.8, 13 / 15, 14 / 15, 1.0, 1.0]
        log_probs, labels = binary(top, [i % 3 > 0 for i in range(10)])
        bins = metrics.reliability_bins(log_probs, labels, num_bins)
        total = ((bins.accuracy - bins.confidence).abs().nan_to_num() * bins.num_items).sum() / 10
        assert metrics.ece(log_probs, labels, num_bins) == pytest.approx(float(total), abs=1e-12)

    def test_adaptive_bins_are_even(self):
        log_probs, labels = draws(num_items=103)
        count = metrics.reliability_bins(log_probs, labels, 10, adaptive=True).num_items
        assert count.sum() == 103
        assert set(count.tolist()) == {10, 11}

    def test_adaptive_brute_force(self):
        log_probs, labels = draws(num_items=60)
        top, answers = log_probs.exp().mean(0).max(-1)
        order = top.argsort()
        groups = zip(top[order].split(15), (answers == labels)[order].double().split(15), strict=True)
        expected = sum(abs(float(c.sum() - r.sum())) for c, r in groups) / 60
        assert metrics.ece(log_probs, labels, 4, adaptive=True) == pytest.approx(expected)

    def test_calibrated_predictions(self):
        generator = torch.Generator().manual_seed(1)
        probs = torch.rand(40_000, 3, generator=generator, dtype=torch.float64)
        probs = probs / probs.sum(-1, keepdim=True)
        labels = probs.multinomial(1, generator=generator)[:, 0]
        assert metrics.ece(probs.log(), labels) < 0.01
        assert metrics.ece((3 * probs.log()).log_softmax(-1), labels) > 0.1

    @pytest.mark.parametrize("adaptive", [False, True])
    def test_order_of_items_does_not_matter(self, adaptive):
        log_probs, labels = binary([0.7, 0.9] * 20, [i % 7 > 2 for i in range(40)])
        permutation = torch.randperm(40, generator=torch.Generator().manual_seed(0))
        shuffled = metrics.ece(log_probs[permutation], labels[permutation], 3, adaptive)
        assert shuffled == pytest.approx(metrics.ece(log_probs, labels, 3, adaptive), abs=1e-12)


class TestTemperature:
    @pytest.mark.parametrize("true", [0.3, 1.0, 4.0])
    def test_grid(self, true):
        generator = torch.Generator().manual_seed(0)
        logits = 2 * torch.randn(4000, 3, generator=generator, dtype=torch.float64)
        labels = logits.softmax(-1).multinomial(1, generator=generator)[:, 0]
        temperature = metrics.temperature_scale(true * logits, labels)
        grid = torch.logspace(-1.2, 1.2, 400, dtype=torch.float64)
        losses = torch.stack([metrics_nll(true * logits / t, labels) for t in grid])
        assert metrics_nll(true * logits / temperature, labels) <= losses.min()
        assert temperature == pytest.approx(float(grid[losses.argmin()]), rel=0.01)
        assert temperature == pytest.approx(true, rel=0.1)

    def test_draws_and_shifts(self):
        log_probs, labels = draws()
        expected = metrics.temperature_scale(metrics.mean_log_probs(log_probs), labels)
        assert metrics.temperature_scale(log_probs, labels) == expected
        shifted = metrics.mean_log_probs(log_probs) + 5
        assert metrics.temperature_scale(shifted, labels) == pytest.approx(expected)

    @pytest.mark.parametrize(("correct", "limit"), [([True] * 4, 0.01), ([False] * 4, 100.0)])
    def test_limits(self, correct, limit):
        log_probs, labels = binary([0.9] * 4, correct)
        assert metrics.temperature_scale(log_probs, labels) == pytest.approx(limit)

    def test_impossible_label_is_finite(self):
        log_probs, labels = binary([1.0, 0.9, 0.8], [False, True, True])
        assert math.isfinite(metrics.temperature_scale(log_probs, labels))


def metrics_nll(logits, labels):
    return torch.nn.functional.cross_entropy(logits, labels)


class TestUncertainty:
    def test_parts_add_up(self):
        log_probs, _ = draws()
        probs = log_probs.exp()
        mean = probs.mean(0)
        divergence = (probs * (probs.log() - mean.log())).sum(-1).mean(0)
        assert torch.allclose(metrics.epistemic(log_probs), divergence, atol=1e-12)
        assert torch.allclose(metrics.entropy(log_probs), -(mean * mean.log()).sum(-1))
        total = metrics.aleatoric(log_probs) + metrics.epistemic(log_probs)
        assert torch.allclose(metrics.entropy(log_probs), total)

    @pytest.mark.parametrize("num_draws", [1, 6])
    def test_equal_draws_know_all_there_is(self, num_draws):
        log_probs = draws(num_draws=1)[0].expand(num_draws, -1, -1)
        values = metrics.epistemic(log_probs)
        assert values.min() >= 0
        assert values.max() < 1e-12

    def test_draws_that_disagree(self):
        log_probs = torch.tensor([[[0.0, -math.inf]], [[-math.inf, 0.0]]])
        assert metrics.epistemic(log_probs).tolist() == pytest.approx([math.log(2)])
        assert metrics.aleatoric(log_probs).tolist() == [0]


LOG_PROBS, LABELS = draws(num_items=4)


@pytest.mark.parametrize(
    ("log_probs", "labels", "message"),
    [
        (LOG_PROBS, torch.tensor([0, 1, 2, 7]), r"labels\[3\] is 7, but log_probs has 4 classes"),
        (LOG_PROBS, torch.tensor([0, -100, 2, 3]), r"labels\[1\] is -100"),
        (LOG_PROBS, LABELS[:3], r"labels should be of shape \(4,\)"),
        (LOG_PROBS, LABELS.double(), "labels should be integer"),
        (LOG_PROBS[0, 0], LABELS, "log_probs should be of shape"),
        (LOG_PROBS[:0], LABELS, "no empty dimension"),
        (LOG_PROBS * math.nan, LABELS, "log_probs holds 80 NaN"),
        (LOG_PROBS * 3, LABELS, "log_softmax"),
    ],
)
@pytest.mark.parametrize("name", ["accuracy", "nll", "brier", "ece", "aurc", "evaluate_log_probs"])
def test_bad_predictions(name, log_probs, labels, message):
    with pytest.raises(ValueError, match=message):
        getattr(metrics, name)(log_probs, labels)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.ece(LOG_PROBS, LABELS, num_bins=0), "num_bins should be at least 1, got 0"),
        (lambda: metrics.auroc(torch.zeros(0), torch.ones(2)), "scores_in should be a vector with items"),
        (lambda: metrics.bootstrap(metrics.nll, LOG_PROBS, LABELS), "items first"),
        (lambda: metrics.bootstrap(metrics.nll, LOG_PROBS[0], LABELS, level=95), "level should be between"),
        (lambda: metrics.bootstrap(metrics.nll, LOG_PROBS[0], LABELS, num_resamples=0), "num_resamples"),
        (lambda: metrics.rmse(torch.zeros(2, 3), torch.zeros(4)), "mean should be of shape"),
        (
            lambda: metrics.gaussian_mixture_nll(torch.zeros(2), torch.zeros(2), torch.zeros(2)),
            "std should be",
        ),
        (lambda: metrics.interval_coverage(torch.zeros(2), torch.ones(2), torch.zeros(2), level=1), "level"),
        (lambda: metrics.mae(torch.full((2,), math.nan), torch.zeros(2)), "mean holds 2 NaN"),
        (lambda: metrics.temperature_scale(LOG_PROBS, LABELS, low=2, high=1), "0 < low < high"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
