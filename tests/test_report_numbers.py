"""Numbers and texts in ArviZ and on the page: in what the data are, and with what a brute force finds."""

import re

import numpy as np
import pytest
import torch
from scipy.stats import norm

from bayeslora_pyro import metrics
from bayeslora_pyro.diagnostics import khat, load_arviz, page_numbers, to_arviz
from bayeslora_pyro.diagnostics.arrays import datasets
from bayeslora_pyro.diagnostics.observations import collect_data

from .fakes import FakeNumbers, FakePosterior, FakeTexts, in_batches, number_items, values
from .pages import page_of


def texts(num_items=12):
    return in_batches({"score": -torch.arange(20.0, 20.0 + num_items)})


class TestNumbers:
    def test_groups_and_dimensions(self):
        groups = datasets(to_arviz(FakeNumbers(), number_items(), num_draws=4))
        assert set(groups["posterior_predictive"].data_vars) == {"y", "loc", "scale"}
        for name in ("y", "loc", "scale"):
            assert groups["posterior_predictive"][name].dims == ("chain", "draw", "item")
        assert groups["log_likelihood"]["y"].dims == ("chain", "draw", "item")
        assert groups["observed_data"]["y"].dtype == np.float64
        unlabelled = datasets(to_arviz(FakeNumbers(), number_items(labelled=False), num_draws=4))
        assert "posterior_predictive" in unlabelled
        assert not {"observed_data", "log_likelihood"} & set(unlabelled)

    @pytest.mark.parametrize(("fault", "caught"), [(1.0, False), (1.5, True)])
    def test_densities_are_those_of_the_normal(self, fault, caught):
        container = to_arviz(FakeNumbers(), number_items(), num_draws=4, seed=7)
        prediction = FakeNumbers().predict(number_items(), 4, 7)
        expected = norm.logpdf(prediction.labels, prediction.loc, fault * prediction.scale)
        assert np.allclose(values(container, "log_likelihood", "y")[0], expected, atol=1e-5) != caught
        stats = datasets(container)["sample_stats"]
        assert np.allclose(stats["lp"][0] - stats["log_prior"][0], expected.sum(-1), atol=1e-3) != caught

    def test_sampled_numbers_follow_their_distribution(self):
        drawn = collect_data(FakeNumbers(), number_items(400), 200, 0)["posterior_predictive"]
        standard = (drawn["y"] - drawn["loc"]) / drawn["scale"]
        assert standard.mean() == pytest.approx(0, abs=0.01)
        assert standard.std() == pytest.approx(1, abs=0.01)

    def test_training_data_are_scored_for_khat(self):
        container = to_arviz(FakeNumbers(), number_items(30), fitted_to=number_items(seed=3), num_draws=32)
        alone = to_arviz(FakeNumbers(), number_items(seed=3), num_draws=32)
        assert khat(container) == pytest.approx(khat(alone))
        with pytest.raises(ValueError, match="fitted_to should have labels"):
            to_arviz(FakeNumbers(), fitted_to=number_items(labelled=False), num_draws=4)


class TestTexts:
    def test_are_scored_alone(self):
        container = to_arviz(FakeTexts(), texts(), num_draws=4, seed=7)
        groups = datasets(container)
        assert not {"posterior_predictive", "observed_data"} & set(groups)
        scores = FakeTexts().log_likelihood(texts(), 4, 7)
        assert np.allclose(groups["log_likelihood"]["y"][0], scores)
        assert np.allclose(groups["sample_stats"]["log_likelihood_sum"][0], scores.double().sum(-1))

    def test_page_says_what_they_score(self, tmp_path):
        page, _ = page_of(to_arviz(FakeTexts(), texts(), fitted_to=texts(), num_draws=32), tmp_path)
        scores = FakeTexts().log_likelihood(texts(), 32, 0).double()
        mean = float((scores.logsumexp(0) - np.log(32)).mean())
        assert f"the predictive log-likelihood of a text is {mean:.1f} nats" in page.text
        assert "Posterior given the training data" in page.text
        assert "believed" not in page.text


class TestPageOfNumbers:
    @pytest.fixture(autouse=True)
    def few_resamples(self, monkeypatch):
        monkeypatch.setattr(page_numbers, "NUM_RESAMPLES", 20)

    def test_whole_page(self, tmp_path):
        container = to_arviz(FakeNumbers(), number_items(300), fitted_to=number_items(), num_draws=32)
        shift = to_arviz(FakeNumbers(), number_items(150, seed=1), num_draws=32)
        page, _ = page_of(container, tmp_path, shifts={"amazon": shift})
        reloaded = datasets(load_arviz(tmp_path / "report.nc"))
        assert reloaded["posterior_predictive"].equals(datasets(container)["posterior_predictive"])
        for batches in (number_items(300), number_items(150, seed=1)):
            known = FakeNumbers().predict(batches, 32, 0)
            known = known.loc, known.scale, known.labels
            inside = metrics.interval_coverage(*known, 0.5), metrics.interval_coverage(*known, 0.9)
            row = f"{metrics.rmse(known[0], known[2]):.3g} {metrics.mae(known[0], known[2]):.3g} "
            row += f"{metrics.gaussian_mixture_nll(*known):.3f} {inside[0]:.1%} {inside[1]:.1%} "
            assert row + f"{metrics.error_correlation(*known):.2f}" in page.text
        assert "amazon" in page.text
        assert "AUROC" in page.text
        assert len([tag for tag, _ in page.tags if tag == "svg"]) == 6
        assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg")

    @pytest.mark.parametrize(
        ("noise_scale", "finding"),
        [(1.0, "neither too narrow nor too wide"), (0.4, "are too narrow"), (3.0, "are too wide")],
    )
    def test_intervals_of_another_width_are_said_to_be(self, noise_scale, finding, tmp_path):
        container = to_arviz(FakeNumbers(noise_scale=noise_scale), number_items(300), num_draws=16)
        page, _ = page_of(container, tmp_path)
        assert finding in page.text
        assert "AUROC" not in page.text

    @pytest.mark.parametrize(("num_items", "num_draws"), [(1, 1), (2, 1), (2, 4)])
    def test_hardly_any_items_or_draws(self, num_items, num_draws, tmp_path):
        page, _ = page_of(to_arviz(FakeNumbers(), number_items(num_items), num_draws=num_draws), tmp_path)
        assert re.search(rf"On {num_items} items", page.text)

    def test_sets_of_another_kind_are_left_out(self, tmp_path):
        container = to_arviz(FakeNumbers(), number_items(40), num_draws=4)
        page, _ = page_of(container, tmp_path, shifts={"other kind": to_arviz(FakePosterior(), num_draws=4)})
        assert "other kind" not in page.text
