"""Metrics of predicted standard deviations against scipy, closed forms and cases worked by hand."""

import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from bayeslora_pyro import metrics
from bayeslora_pyro.prediction import RegressionPrediction


def numbers(num_items, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(num_items, generator=generator, dtype=torch.float64) + 0.1
    return spread, (spread * torch.randn(num_items, generator=generator, dtype=torch.float64)).abs()


class TestCorrelation:
    @pytest.mark.parametrize("tied", [False, True])
    @pytest.mark.parametrize("name", ["rank", "linear"])
    def test_it_is_that_of_scipy(self, name, tied):
        pair = [torch.ceil(4 * values) for values in numbers(60)] if tied else numbers(60)
        found = getattr(metrics, f"{name}_correlation")(*pair)
        rank, linear = spearmanr(*pair).statistic, pearsonr(*pair).statistic
        right, wrong = (rank, linear) if name == "rank" else (linear, rank)
        assert found == pytest.approx(right)
        assert found != pytest.approx(wrong, abs=1e-3)

    @pytest.mark.parametrize("name", ["rank", "linear"])
    def test_what_is_the_same_for_all_items_has_none(self, name):
        flat = torch.full((7,), 0.1)
        assert getattr(metrics, f"{name}_correlation")(flat, torch.arange(7.0)) == 0

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"got \(3,\) and \(4,\)"):
            metrics.rank_correlation(torch.zeros(3), torch.zeros(4))
        with pytest.raises(ValueError, match="second holds 1 NaN"):
            metrics.linear_correlation(torch.zeros(2), torch.tensor([0.0, torch.nan]))


class TestIntervalCalibration:
    mean, std = (
        torch.randn(2, 20_000, generator=torch.Generator().manual_seed(0)),
        torch.tensor([[0.5], [2.0]]),
    )

    def target(self):
        generator = torch.Generator().manual_seed(1)
        draw = torch.randint(2, (20_000,), generator=generator)
        return (
            self.mean.gather(0, draw[None])[0] + torch.randn(20_000, generator=generator) * self.std[draw, 0]
        )

    @pytest.mark.parametrize(("factor", "caught"), [(1.0, False), (0.8, True), (1.25, True)])
    def test_the_curve_of_the_truth_is_the_diagonal(self, factor, caught):
        curve = metrics.interval_calibration(self.mean, factor * self.std, self.target())
        assert curve.level.tolist() == pytest.approx([k / 20 for k in range(1, 20)])
        assert (curve.error > 0.02) == caught

    def test_it_holds_the_coverage_of_each_level(self):
        parts = self.mean, self.std, self.target()
        curve = metrics.interval_calibration(*parts, levels=(0.9, 0.5))
        assert curve.coverage.tolist() == [metrics.interval_coverage(*parts, level) for level in (0.9, 0.5)]

    def test_levels_are_probabilities(self):
        with pytest.raises(ValueError, match=r"between 0 and 1, got \(0.5, 1\)"):
            metrics.interval_calibration(self.mean, self.std, self.target(), levels=(0.5, 1))


class TestSparsification:
    def test_by_hand(self):
        curves = metrics.sparsification(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([2.0, 1.0, 6.0]))
        assert curves.removed.tolist() == pytest.approx([0, 1 / 3, 2 / 3])
        assert curves.by_spread.tolist() == pytest.approx([1, 3.5 / 3, 1 / 3])  # 2 goes first, then 6
        assert curves.by_error.tolist() == pytest.approx([1, 1.5 / 3, 1 / 3])
        found = metrics.ause(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([2.0, 1.0, 6.0]))
        assert found == pytest.approx(2 / 9)

    def test_knowing_the_errors_is_best_and_any_increasing_spread_as_good(self):
        spread, error = numbers(50)
        assert metrics.ause(error.exp(), error) == pytest.approx(0, abs=1e-12)
        assert 0 < metrics.ause(spread, error) < metrics.ause(-spread, error)

    def test_equal_spreads_are_taken_in_random_order(self):
        error = numbers(50)[1]
        curves = metrics.sparsification(torch.ones(50), error)
        torch.testing.assert_close(curves.by_spread, torch.ones(50, dtype=torch.float64))
        spread = torch.arange(50) // 10
        shuffled = torch.randperm(50, generator=torch.Generator().manual_seed(1))
        assert metrics.ause(spread, error) == pytest.approx(metrics.ause(spread[shuffled], error[shuffled]))

    def test_bad_input(self):
        with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
            metrics.sparsification(torch.ones(3), torch.ones(2))
        with pytest.raises(ValueError, match="absolute errors, at least one"):
            metrics.ause(torch.ones(2), torch.tensor([-1.0, 1.0]))


class TestEvaluation:
    def test_total_and_epistemic_uncertainty_are_told_apart(self):
        spread, error = numbers(40)
        loc = torch.stack([-spread, spread])  # the draws disagree by the spread; the noise hides it
        found = RegressionPrediction(loc, (4 - spread.square()).sqrt().expand(2, -1), error).evaluate()
        assert found["spearman_epistemic"] == pytest.approx(spearmanr(spread, error).statistic)
        assert found["pearson_epistemic"] == pytest.approx(pearsonr(spread, error).statistic)
        noisy = RegressionPrediction(loc, (9 - 2 * spread.square()).sqrt().expand(2, -1), error).evaluate()
        assert noisy["spearman"] == pytest.approx(-found["spearman_epistemic"])
        total = (9 - spread.square()).sqrt()
        assert noisy["pearson"] == pytest.approx(pearsonr(total, error).statistic)
        assert noisy["ause"] == pytest.approx(metrics.ause(-spread, error))
        assert noisy["coverage_50"] <= noisy["coverage_80"] <= noisy["coverage_95"]

    def test_one_draw_of_constant_noise_ranks_nothing(self):
        _, error = numbers(40)
        found = RegressionPrediction(torch.zeros(1, 40), torch.full((1, 40), 0.3), error).evaluate()
        names = [f"{kind}{part}" for kind in ("spearman", "pearson") for part in ("", "_epistemic")]
        assert [found[name] for name in names] == [0] * 4

    def test_without_any_error_there_is_nothing_to_rank(self):
        loc = torch.arange(3.0).expand(2, 3)
        assert RegressionPrediction(loc, torch.ones(2, 3), torch.arange(3.0)).evaluate()["ause"] == 0
