"""The page about a posterior of classes: what it says, and that it stands alone."""

import re

import matplotlib
import numpy as np
import pytest
import torch

from bayeslora_pyro import metrics
from bayeslora_pyro.diagnostics import load_arviz, page_predictions, report, to_arviz
from bayeslora_pyro.diagnostics.arrays import datasets, from_arrays
from bayeslora_pyro.diagnostics.svg import COLOURS

from .fakes import FakePosterior, items
from .pages import page_of


class TestReport:
    @pytest.fixture(autouse=True)
    def few_resamples(self, monkeypatch):
        monkeypatch.setattr(page_predictions, "NUM_RESAMPLES", 20)

    def test_whole_page(self, tmp_path):
        posterior = FakePosterior(kl_weight=0.02)
        container = to_arviz(posterior, items(200), fitted_to=items(12, seed=9), num_draws=32)
        shifts = {"amazon": to_arviz(posterior, items(150, seed=1, scale=0.5), num_draws=32)}
        before = dict(matplotlib.rcParams)
        page, _ = page_of(container, tmp_path, shifts=shifts)
        assert dict(matplotlib.rcParams) == before
        assert sorted(each.name for each in tmp_path.iterdir()) == ["report.html", "report.nc"]
        assert datasets(load_arviz(tmp_path / "report.nc"))["posterior"].equals(
            datasets(container)["posterior"]
        )

        prediction = posterior.predict(items(200), 32, 0)
        figures = metrics.evaluate_log_probs(prediction.log_probs, prediction.labels)
        for shown in (
            f"{figures['accuracy']:.1%}",
            *(f"{figures[key]:.3f}" for key in ("nll", "ece", "brier")),
        ):
            assert shown in page.text
        foreign = posterior.predict(items(150, seed=1, scale=0.5), 32, 0)
        detection = metrics.auroc(metrics.entropy(prediction.log_probs), metrics.entropy(foreign.log_probs))
        assert f"{detection:.3f}" in page.text
        assert "tempered ELBO (KL weight 0.02)" in page.text
        assert "Posterior given the training data" in page.text
        assert len([tag for tag, _ in page.tags if tag == "svg"]) == 6

    def test_nothing_from_outside(self, tmp_path):
        page, source = page_of(to_arviz(FakePosterior(), items(60), num_draws=32), tmp_path)
        assert "http" not in source
        assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
        assert "@import" not in source
        assert all(attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg")
        assert all(value not in source for value in COLOURS.values())

    def test_text_is_escaped(self, tmp_path):
        evil = "<script>alert('x')</script>&"
        posterior = FakePosterior(extra={"method": evil, "note": [evil], "label_names": [evil, "b", "c"]})
        container = to_arviz(posterior, items(60), num_draws=32)
        page, source = page_of(container, tmp_path, shifts={evil: container})
        assert "<script" not in source
        assert page.text.count(evil) >= 4

    def test_page_without_predictions(self, tmp_path):
        page, _ = page_of(to_arviz(FakePosterior(num_steps=0), num_draws=4), tmp_path, title="Mine")
        assert ("h1", {}) in page.tags
        assert "without labelled predictions" in page.text
        assert "How it was fitted" not in page.text
        assert "The posterior in numbers" in page.text

    @pytest.mark.parametrize("num_draws", [1, 8])
    def test_few_draws(self, tmp_path, num_draws):
        page, _ = page_of(to_arviz(FakePosterior(), items(40), num_draws=num_draws), tmp_path)
        assert "k-hat needs 30 draws" in page.text

    def test_certain_and_right(self, tmp_path):
        batch = {"logits": 60 * torch.eye(2).repeat(10, 1), "labels": torch.arange(2).repeat(10)}
        page, _ = page_of(to_arviz(FakePosterior(num_steps=1), [batch], num_draws=32), tmp_path)
        assert "100.0% of the answers are right" in page.text
        assert "neither over- nor underconfidence" in page.text

    def test_overconfidence_is_said(self, tmp_path):
        container = to_arviz(FakePosterior(sharpness=6.0), items(400), num_draws=8)
        page, _ = page_of(container, tmp_path)
        assert re.search(r"The model is overconfident by \d+\.\d points", page.text)

    def test_several_fits(self, tmp_path):
        container = to_arviz([FakePosterior(), FakePosterior(num_steps=9)], items(40), num_draws=30)
        page, _ = page_of(container, tmp_path)
        assert "2 independent fits" in page.text
        assert "averaged over 60 draws" in page.text

    def test_snapshots_are_not_called_independent_fits(self, tmp_path):
        def member(seed, **known):
            return FakePosterior(extra={"fit": {"seed": seed, "snapshots": 2}, **known})

        container = to_arviz([member(0, snapshot=9), member(0)], items(40), num_draws=30)
        page, _ = page_of(container, tmp_path)
        assert "2 snapshots of one fit, fitted to" in page.text
        assert "R-hat compares 2 snapshots of one fit." in page.text
        assert "independent fit" not in page.text
        assert "snapshot" not in container.attrs
        more = [member(0, snapshot=9), member(0), member(1, snapshot=9), member(1)]
        page, _ = page_of(to_arviz(more, items(40), num_draws=30), tmp_path)
        assert "4 snapshots of 2 independent fits" in page.text

    def test_bad_input(self, tmp_path):
        container = to_arviz(FakePosterior(), num_draws=4)
        with pytest.raises(ValueError, match=r"should end in .html"):
            report(container, tmp_path / "report.nc")
        with pytest.raises(ValueError, match="group posterior"):
            report(from_arrays({"prior": {"x": np.zeros((1, 4))}}, {}, {}), tmp_path / "report.html")
        assert not list(tmp_path.iterdir())
