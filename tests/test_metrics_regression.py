"""Metrics of predicted numbers against brute force and closed forms."""

import math

import pytest
import torch
from scipy.stats import norm, spearmanr

from bayeslora_pyro import metrics


class TestRegression:
    mean = torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.0, 0.0]])
    target = torch.tensor([1.0, 1.0, 4.0])

    def test_point_errors(self):
        assert metrics.rmse(self.mean, self.target) == pytest.approx(math.sqrt(3))
        assert metrics.mae(self.mean, self.target) == pytest.approx(1)
        assert metrics.rmse(self.mean[0], self.target) == pytest.approx(math.sqrt(5 / 3))

    def test_mixture_density(self):
        std = torch.tensor([[0.5], [2.0]])
        total = 0.0
        for i, y in enumerate(self.target.tolist()):
            parts = [
                math.exp(-0.5 * ((y - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))
                for m, s in ((float(self.mean[0, i]), 0.5), (float(self.mean[1, i]), 2.0))
            ]
            total -= math.log(sum(parts) / 2) / 3
        assert metrics.gaussian_mixture_nll(self.mean, std, self.target) == pytest.approx(total)

    @pytest.mark.parametrize("level", [0.5, 0.9])
    def test_coverage_of_the_truth_is_its_level(self, level):
        generator = torch.Generator().manual_seed(0)
        mean = torch.randn(2, 20_000, generator=generator)
        std = torch.tensor([[0.5], [2.0]])
        draw = torch.randint(2, (20_000,), generator=generator)
        noise = torch.randn(20_000, generator=generator) * std[draw, 0]
        target = mean.gather(0, draw[None])[0] + noise
        assert metrics.interval_coverage(mean, std, target, level) == pytest.approx(level, abs=0.01)
        assert metrics.interval_coverage(mean, std / 2, target, level) < level - 0.1

    @pytest.mark.parametrize("num_draws", [1, 6])
    def test_predictive_deviation_is_that_of_the_mixture(self, num_draws):
        generator = torch.Generator().manual_seed(0)
        mean = torch.randn(num_draws, 5, generator=generator, dtype=torch.float64)
        std = torch.rand(num_draws, 5, generator=generator, dtype=torch.float64) + 0.1
        second_moment = (mean.square() + std.square()).mean(0)
        expected = (second_moment - mean.mean(0).square()).sqrt()
        torch.testing.assert_close(metrics.predictive_std(mean, std), expected)

    @pytest.mark.parametrize(("fault", "caught"), [(1.0, False), (1.05, True)])
    def test_distribution_function_of_the_mixture(self, fault, caught):
        std = torch.tensor([[0.5], [2.0]])
        found = metrics.predictive_cdf(self.mean, fault * std, self.target)
        expected = norm.cdf(self.target.double(), self.mean.double(), std.double()).mean(0)
        assert torch.allclose(found, torch.from_numpy(expected), atol=1e-12) != caught

    @pytest.mark.parametrize("tied", [False, True])
    def test_error_correlation_is_that_of_scipy(self, tied):
        generator = torch.Generator().manual_seed(0)
        std = torch.rand(50, generator=generator) + 0.1
        target = std * torch.randn(50, generator=generator)
        std, target = (torch.ceil(5 * values) for values in (std, target)) if tied else (std, target)
        found = metrics.error_correlation(torch.zeros(50), std, target)
        assert found == pytest.approx(spearmanr(std, target.abs()).statistic)
        assert found != pytest.approx(spearmanr(std, target).statistic, abs=0.1)

    def test_error_correlation_sees_where_draws_disagree(self):
        mean = torch.tensor([[-1.0, -2.0, -3.0], [1.0, 2.0, 3.0]])
        assert metrics.error_correlation(
            mean, torch.ones(()), torch.tensor([0.1, 0.2, 0.3])
        ) == pytest.approx(1)
        assert metrics.error_correlation(
            mean, torch.ones(()), torch.tensor([0.3, 0.2, 0.1])
        ) == pytest.approx(-1)
        assert metrics.error_correlation(mean[:1], torch.ones(()), self.target) == 0
