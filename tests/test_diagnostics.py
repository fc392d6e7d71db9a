"""From a posterior to ArviZ, tables and the page, on a small stand-in whose every number is known."""

import html.parser
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch

from bayeslora_pyro import metrics
from bayeslora_pyro.diagnostics import (
    arrays,
    khat,
    load_arviz,
    page_predictions,
    report,
    save_arviz,
    summary,
    to_arviz,
)
from bayeslora_pyro.diagnostics.arrays import datasets, from_arrays, pareto_khat
from bayeslora_pyro.diagnostics.forest import short_names
from bayeslora_pyro.diagnostics.naming import name_dims
from bayeslora_pyro.diagnostics.svg import COLOURS
from bayeslora_pyro.types import FactorStack

Q, V = "bert.layer.{}.attention.query", "bert.layer.{}.attention.value"


def stacks(num_layers, grouped=False):
    """One stack of A; B of query and value together, or apart as under grouped-query attention."""
    queries, values = ([name.format(i) for i in range(num_layers)] for name in (Q, V))
    both = tuple(name for pair in zip(queries, values, strict=True) for name in pair)
    if not grouped:
        return FactorStack("A_2x6", "A", (2, 6), both), FactorStack("B_6x2", "B", (6, 2), both)
    return (
        FactorStack("A_2x6", "A", (2, 6), both),
        FactorStack("B_6x2", "B", (6, 2), tuple(queries)),
        FactorStack("B_4x2", "B", (4, 2), tuple(values)),
    )


@dataclass
class FakePosterior:
    """Independent Gaussians for prior and guide, and logits that shift a little with every draw."""

    num_layers: int = 3
    grouped: bool = False
    guide_sd: float = 0.5
    guide_mean: float = 0.3
    num_steps: int = 20
    kl_weight: float = 1.0
    sharpness: float = 2.0
    extra: dict = field(default_factory=dict)

    @property
    def stacks(self):
        return stacks(self.num_layers, self.grouped)

    @property
    def site_dims(self):
        dims = {}
        for stack in self.stacks:
            dims[f"{stack.name}.V"] = ("adapter", "inducing_row", "inducing_col")
            features = ("rank", "in_feature") if stack.role == "A" else ("out_feature", "rank")
            dims[f"{stack.name}.W"] = ("adapter", *features)
        return dims

    @property
    def metadata(self):
        known = {
            "method": "bayesian-lora",
            "base_model": "MiniLM",
            "num_data": 12,
            "kl_weight": self.kl_weight,
        }
        return {**known, "seed": 0, **self.extra}

    @property
    def history(self):
        rows = []
        for step in range(self.num_steps):
            kl_v, kl_w = 2 * math.exp(-step / 80), 200 * math.exp(-step / 40) + 0.7
            fit = -0.7 * math.exp(-step / 90) - 0.25 + 0.04 * math.sin(17 * step)
            rows.append(
                {"step": step, "elbo": fit - self.kl_weight * (kl_v + kl_w), "expected_log_likelihood": fit}
                | {"kl_V": kl_v, "kl_W": kl_w, "kl": kl_v + kl_w}
                | {"kl_weight": self.kl_weight * min(1.0, (step + 1) / (0.3 * self.num_steps))}
            )
        return rows

    def noise(self, num_draws, seed):
        generator = torch.Generator().manual_seed(seed)
        draws = {}
        for stack in self.stacks:
            draws[f"{stack.name}.V"] = torch.randn(num_draws, len(stack), 3, 3, generator=generator)
            draws[f"{stack.name}.W"] = torch.randn(num_draws, len(stack), *stack.shape, generator=generator)
        return draws

    def sample(self, num_draws, seed):
        return {name: self.guide_mean + self.guide_sd * x for name, x in self.noise(num_draws, seed).items()}

    def sample_prior(self, num_draws, seed):
        return self.noise(num_draws, seed)

    def log_weights(self, num_draws, seed):
        def density(mean, sd):
            normal = torch.distributions.Normal(mean, sd)
            draws = self.sample(num_draws, seed).values()
            return sum(normal.log_prob(x.double()).flatten(1).sum(1) for x in draws)

        return density(0.0, 1.0), density(self.guide_mean, self.guide_sd)

    def predict(self, batches, num_draws, seed):
        batches = list(batches)
        logits = torch.cat([batch["logits"] for batch in batches])
        generator = torch.Generator().manual_seed(seed + 1)
        noise = torch.randn(num_draws, *logits.shape, generator=generator)
        log_probs = (self.sharpness * (logits + 0.5 * noise)).log_softmax(-1)
        labels = None if "labels" not in batches[0] else torch.cat([batch["labels"] for batch in batches])
        return SimpleNamespace(log_probs=log_probs, labels=labels)


def items(num_items=12, seed=0, num_classes=3, labelled=True, scale=1.5):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_items, num_classes, generator=generator)
    labels = logits.softmax(-1).multinomial(1, generator=generator)[:, 0]
    whole = {"logits": logits} | ({"labels": labels} if labelled else {})
    return [{key: value[i : i + 5] for key, value in whole.items()} for i in range(0, num_items, 5)]


def values(container, group, name):
    return datasets(container)[group][name].values


class TestContainer:
    @pytest.mark.parametrize("grouped", [False, True])
    def test_groups_and_dimensions(self, grouped):
        posterior = FakePosterior(grouped=grouped)
        groups = datasets(to_arviz(posterior, items(), num_draws=4))
        assert set(groups) == {
            "posterior", "prior", "sample_stats", "posterior_predictive", "log_likelihood", "observed_data",
            "constant_data",
        }  # fmt: skip
        draws = groups["posterior"]
        assert draws["A_2x6.V"].dims == ("chain", "draw", "adapter", "inducing_row", "inducing_col")
        assert list(draws["adapter"].values) == list(posterior.stacks[0].adapters)
        assert draws["A_2x6.W"].dims[2:] == ("adapter", "rank", "in_feature")
        if grouped:
            assert draws["B_4x2.W"].dims[2:] == ("adapter@B_4x2", "out_feature@B_4x2", "rank")
            assert list(draws["adapter@B_4x2"].values) == [V.format(i) for i in range(3)]
        else:
            assert draws["B_6x2.W"].dims[2:] == ("adapter", "out_feature", "rank")
        assert set(groups["prior"].data_vars) == set(draws.data_vars)
        assert groups["log_likelihood"]["y"].dims == ("chain", "draw", "item")
        assert groups["posterior_predictive"]["log_probs"].dims == ("chain", "draw", "item", "label")
        assert groups["observed_data"]["y"].dims == ("item",)
        assert groups["constant_data"]["kl_W"].dims == ("chain", "step")

    def test_draws_are_those_of_the_posterior(self):
        posterior = FakePosterior()
        container = to_arviz(posterior, items(), num_draws=4, seed=7)
        for name, draws in posterior.sample(4, 7).items():
            assert np.array_equal(values(container, "posterior", name)[0], draws.numpy())
        prediction = posterior.predict(items(), 4, 7)
        assert np.array_equal(values(container, "observed_data", "y"), prediction.labels.numpy())
        expected = prediction.log_probs[:, torch.arange(12), prediction.labels]
        assert np.allclose(values(container, "log_likelihood", "y")[0], expected, atol=1e-6)

    def test_densities_add_up(self):
        posterior = FakePosterior()
        stats = datasets(to_arviz(posterior, items(), num_draws=4, seed=7))["sample_stats"]
        log_prior, log_guide = posterior.log_weights(4, 7)
        assert np.allclose(stats["log_prior"][0], log_prior)
        assert np.allclose(stats["log_guide"][0], log_guide)
        assert np.allclose(stats["lp"], stats["log_prior"] + stats["log_likelihood_sum"])

    def test_log_joint_of_the_training_data(self):
        posterior, training = FakePosterior(), items(seed=3)
        container = to_arviz(posterior, items(30), fitted_to=training, num_draws=4)
        alone = to_arviz(posterior, training, num_draws=4)
        assert np.allclose(values(container, "sample_stats", "lp"), values(alone, "sample_stats", "lp"))
        assert container.attrs["lp_data"] == "fitted_to"
        assert alone.attrs["lp_data"] == "batches"
        with pytest.raises(ValueError, match="fitted_to yields 10 items, but the posterior was fitted to 12"):
            to_arviz(posterior, fitted_to=training[:2], num_draws=4)
        with pytest.raises(ValueError, match="fitted_to should have labels"):
            to_arviz(posterior, fitted_to=items(labelled=False), num_draws=4)

    def test_sampled_answers_follow_the_probabilities(self):
        container = to_arviz(FakePosterior(), items(400), num_draws=50)
        probs = np.exp(values(container, "posterior_predictive", "log_probs"))
        answers = values(container, "posterior_predictive", "y")
        for label in range(3):
            assert (answers == label).mean() == pytest.approx(probs[..., label].mean(), abs=0.01)

    def test_what_is_not_known_is_left_out(self):
        groups = datasets(to_arviz(FakePosterior(), num_draws=4))
        assert set(groups) == {"posterior", "prior", "sample_stats", "constant_data"}
        assert "lp" not in groups["sample_stats"]
        groups = datasets(to_arviz(FakePosterior(), items(labelled=False), num_draws=4))
        assert "posterior_predictive" in groups
        assert "observed_data" not in groups
        kept = datasets(to_arviz(FakePosterior(), num_draws=4, sites=()))["posterior"]
        assert list(kept.data_vars) == ["update_norm"]

    def test_chains_are_fits(self):
        several = [FakePosterior(guide_mean=0.1, num_steps=5), FakePosterior(guide_mean=0.4, num_steps=8)]
        container = to_arviz(several, iter(items()), num_draws=4, seed=7)
        for chain, posterior in enumerate(several):
            expected = posterior.sample(4, 7 + chain)["A_2x6.V"].numpy()
            assert np.array_equal(values(container, "posterior", "A_2x6.V")[chain], expected)
        elbo = values(container, "constant_data", "elbo")
        assert elbo.shape == (2, 8)
        assert np.isnan(elbo[0, 5:]).all()
        assert np.isfinite(elbo[1]).all()

    def test_names_of_classes(self):
        named = FakePosterior(extra={"label_names": ["a", "b", "c"]})
        assert list(datasets(to_arviz(named, items(), num_draws=4))["posterior_predictive"]["label"]) == [
            *"abc"
        ]
        container = to_arviz(named, items(), num_draws=4, label_names=["x", "y", "z"])
        assert list(datasets(container)["posterior_predictive"]["label"]) == ["x", "y", "z"]

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: to_arviz([]), "empty sequence"),
            (lambda: to_arviz([FakePosterior(2), FakePosterior(3)]), r"posterior\[1\] has other stacks"),
            (lambda: to_arviz(FakePosterior(), sites=["W"], num_draws=4), r"sites names \['W'\]"),
            (
                lambda: to_arviz(FakePosterior(), items(), num_draws=4, label_names=["a"]),
                "1 names.*3 classes",
            ),
            (lambda: name_dims({"A.V": ("adapter",)}, {"A.V": (2, 3)}, {"A": ("x", "y")}), "site_dims"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(ValueError, match=message):
            call()

    def test_global_state_is_left_alone(self):
        state = torch.get_rng_state(), np.random.get_state()[1].tolist()
        to_arviz(FakePosterior(), items(), num_draws=4)
        assert torch.equal(torch.get_rng_state(), state[0])
        assert np.random.get_state()[1].tolist() == state[1]


class TestUpdateNorm:
    @pytest.mark.parametrize("grouped", [False, True])
    def test_dense_product(self, grouped):
        posterior = FakePosterior(grouped=grouped)
        draws = posterior.sample(4, 0)
        found = datasets(to_arviz(posterior, num_draws=4))["posterior"]["update_norm"]
        for module in posterior.stacks[0].adapters:
            factors = {
                stack.role: draws[f"{stack.name}.W"][:, stack.adapters.index(module)].double()
                for stack in posterior.stacks
                if module in stack.adapters
            }
            expected = (factors["B"] @ factors["A"]).flatten(1).norm(dim=1)
            assert np.allclose(found.sel(adapter=module)[0], expected)
            planted = factors["B"].flatten(1).norm(dim=1) * factors["A"].flatten(1).norm(dim=1)
            assert not np.allclose(found.sel(adapter=module)[0], planted)

    def test_one_factor_alone_has_none(self):
        class OnlyA(FakePosterior):
            @property
            def stacks(self):
                return super().stacks[:1]

        assert "update_norm" not in datasets(to_arviz(OnlyA(), num_draws=4))["posterior"]


class TestFile:
    def test_round_trip(self, tmp_path):
        container = to_arviz(FakePosterior(grouped=True), items(), num_draws=4)
        path = save_arviz(container, tmp_path / "deep" / "draws.nc")
        reloaded = load_arviz(path)
        assert dict(reloaded.attrs) == dict(container.attrs)
        for name, group in datasets(container).items():
            assert group.equals(datasets(reloaded)[name])
        save_arviz(reloaded, path)
        assert [each.name for each in path.parent.iterdir()] == ["draws.nc"]

    def test_failed_write_leaves_the_old_file(self, tmp_path):
        path = save_arviz(to_arviz(FakePosterior(), num_draws=4), tmp_path / "draws.nc")
        before = path.read_bytes()
        broken = to_arviz(FakePosterior(), num_draws=4)
        broken.attrs["impossible"] = object()
        with pytest.raises(TypeError):
            save_arviz(broken, path)
        assert path.read_bytes() == before
        assert [each.name for each in tmp_path.iterdir()] == ["draws.nc"]

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="save_arviz and report write one"):
            load_arviz(tmp_path / "none.nc")

    def test_import_is_quiet_and_late(self, tmp_path):
        code = (
            "import runpy, sys; arrays = runpy.run_path(sys.argv[1]); assert 'arviz' not in sys.modules; "
            "arrays['arviz'](); assert 'torch' not in sys.modules"
        )
        # An empty cache makes ArviZ 0.23 believe that it has not made its announcement today.
        command = [sys.executable, "-W", "error", "-c", code, arrays.__file__]
        subprocess.run(command, check=True, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)})


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


VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(html.parser.HTMLParser):
    """Reads a page and checks that its elements nest, its ids are unique and its references stay inside."""

    def __init__(self, source):
        super().__init__()
        self.open, self.ids, self.references, self.words, self.tags = [], [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open
        assert len(self.ids) == len(set(self.ids))
        assert {reference.removeprefix("#") for reference in self.references} <= set(self.ids)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.references += [attrs[key] for key in ("href", "xlink:href", "src") if key in attrs]
        self.references += re.findall(r"url\((.*?)\)", str(attrs))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def page_of(container, tmp_path, **options):
    path = report(container, tmp_path / "report.html", **options)
    source = path.read_text(encoding="utf-8")
    return Page(source), source


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

    def test_bad_input(self, tmp_path):
        container = to_arviz(FakePosterior(), num_draws=4)
        with pytest.raises(ValueError, match=r"should end in .html"):
            report(container, tmp_path / "report.nc")
        with pytest.raises(ValueError, match="group posterior"):
            report(from_arrays({"prior": {"x": np.zeros((1, 4))}}, {}, {}), tmp_path / "report.html")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("modules", "names"),
    [
        (
            ["m.layer.0.attention.query", "m.layer.1.attention.value"],
            [("query", "layer 0"), ("value", "layer 1")],
        ),
        (["model.layers.11.q_proj"], [("q_proj", "layer 11")]),
        (["lm_head"], [("lm_head", "lm_head")]),
        (["a.layers.0.fc", "b.layers.0.fc"], [("adapter", "a.layers.0.fc"), ("adapter", "b.layers.0.fc")]),
    ],
)
def test_short_names(modules, names):
    assert short_names(modules) == names
