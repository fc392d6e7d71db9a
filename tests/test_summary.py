"""The posterior in a few numbers: k-hat against tails that are known, moments against those of a Gaussian."""

import numpy as np
import pytest

from bayeslora_pyro.diagnostics import khat, summary, to_arviz
from bayeslora_pyro.diagnostics.arrays import from_arrays, pareto_khat

from .fakes import FakePosterior, items, values


class TestKhat:
    @pytest.mark.parametrize("sd", [0.5, 0.7])
    def test_tail_of_a_narrow_gaussian(self, sd):
        # Weights N(0, 1) / N(0, sd^2) have a Pareto tail of index 1 - sd^2.
        x = sd * np.random.default_rng(0).normal(size=50_000)
        log_weights = 0.5 * x**2 * (1 / sd**2 - 1)
        assert pareto_khat(log_weights) == pytest.approx(1 - sd**2, abs=0.1)

    def test_exact_guide_and_hopeless_guide(self):
        exact = FakePosterior(guide_mean=0.0, guide_sd=1.0, sharpness=0.0)
        assert khat(to_arviz(exact, items(), num_draws=32)) == 0
        assert khat(to_arviz(FakePosterior(num_layers=40, guide_sd=0.1), items(), num_draws=32)) > 0.7

    def test_worst_chain_and_tempering(self):
        good, bad = FakePosterior(guide_mean=0.0, guide_sd=1.0, sharpness=0.0), FakePosterior(guide_sd=0.2)
        assert khat(to_arviz([good, bad], items(), num_draws=32)) > 0.7
        container = to_arviz(FakePosterior(guide_mean=0.0, guide_sd=1.0), items(), num_draws=200)
        likelihood = values(container, "sample_stats", "log_likelihood_sum")[0]
        assert khat(container, kl_weight=0.1) == pytest.approx(pareto_khat(likelihood / 0.1))
        assert khat(container) == pytest.approx(pareto_khat(likelihood))

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: khat(to_arviz(FakePosterior(), num_draws=32)), "no log joint density"),
            (lambda: khat(to_arviz(FakePosterior(), items(), num_draws=29)), "at least 30 draws"),
            (lambda: khat(to_arviz(FakePosterior(), items(), num_draws=32), kl_weight=0), "kl_weight"),
            (lambda: pareto_khat(np.full(40, np.nan)), "holds 40 NaN"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()


class TestSummary:
    def test_known_moments(self):
        posterior = FakePosterior(num_layers=12, guide_mean=0.3, guide_sd=0.5)
        table = summary(to_arviz(posterior, num_draws=200))
        row = table.loc["A_2x6.V"]
        assert row["elements"] == 24 * 9
        assert row["mean"] == pytest.approx(0.3, abs=0.02)
        assert row["sd"] == pytest.approx(0.5, abs=0.02)
        assert row["sd_ratio"] == pytest.approx(0.5, abs=0.03)
        assert table["r_hat"].isna().all()

    def test_noise_of_few_draws_is_no_signal(self):
        table = summary(to_arviz(FakePosterior(num_layers=30, guide_mean=0.0), num_draws=4))
        assert table.loc["A_2x6.V", "mean"] < 0.1
        # The plain root mean square of the means would be 0.5 / sqrt(4).
        assert table.loc["A_2x6.V", "sd"] == pytest.approx(0.5, abs=0.03)

    def test_fits_that_disagree(self):
        same = [FakePosterior(guide_mean=0.3), FakePosterior(guide_mean=0.3)]
        apart = [FakePosterior(guide_mean=0.3), FakePosterior(guide_mean=3.0)]
        r_hat = [summary(to_arviz(fits, num_draws=100)).loc["update_norm", "r_hat"] for fits in (same, apart)]
        assert r_hat[0] < 1.1
        assert r_hat[1] > 1.5

    def test_foreign_container(self):
        with pytest.raises(ValueError, match="group posterior"):
            summary(from_arrays({"prior": {"x": np.zeros((1, 4))}}, {}, {}))
