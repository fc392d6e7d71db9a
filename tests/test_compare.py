"""Several posteriors beside one another: the figures of each, and what they are shown as."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from bayeslora_pyro import METHODS, BayesianLora, MeanFieldGuide, Posterior, compare, metrics
from bayeslora_pyro.diagnostics import khat, to_arviz
from bayeslora_pyro.diagnostics.arrays import compare_loo, leave_one_out
from bayeslora_pyro.diagnostics.comparison import Comparison
from bayeslora_pyro.diagnostics.information import waic

from .fakes import FakeNumbers, FakePosterior, FakeTexts, items, number_items
from .pages import Page
from .tiny import tiny_batch, tiny_bert

TRAINING = items(12, seed=9)


def log_likelihood(scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return -scale * np.random.default_rng(seed).random((2, 40, 20))


def linear_gaussian(num_items: int = 10) -> tuple[np.ndarray, float]:
    """Draws from an exact posterior of a normal mean, their scores, and the exact leave-one-out density."""
    rng = np.random.default_rng(3)
    y = rng.normal(1.0, 1.0, num_items)

    def posterior(data):
        return data.sum() / (len(data) + 1), 1 / (len(data) + 1)

    def log_normal(x, mean, variance):
        return -0.5 * ((x - mean) ** 2 / variance + np.log(2 * math.pi * variance))

    mean, variance = posterior(y)
    draws = mean + variance**0.5 * rng.normal(size=(1, 20_000, 1))
    others = [np.delete(y, i) for i in range(num_items)]
    exact = sum(
        float(log_normal(x, posterior(rest)[0], 1 + posterior(rest)[1]))
        for x, rest in zip(y, others, strict=True)
    )
    return log_normal(y, draws, 1.0), exact


def test_loo_and_waic_of_a_posterior_that_is_exact() -> None:
    scores, exact = linear_gaussian()
    (row,) = compare_loo({"exact": leave_one_out(scores)}).values()
    assert row["elpd_loo"] == pytest.approx(exact, abs=0.05)
    assert waic(scores)[0] == pytest.approx(exact, abs=0.1)
    assert row["bad_k"] == 0
    in_sample = float((np.logaddexp.reduce(scores[0], axis=0) - np.log(scores.shape[1])).sum())
    assert in_sample > exact + 0.4  # planted: scores of the items themselves
    assert row["p_loo"] == pytest.approx(in_sample - row["elpd_loo"], abs=1e-6)


def test_bad_k_is_counted() -> None:
    wild = np.concatenate([log_likelihood()[..., :15], 20 * log_likelihood(seed=1)[..., :5] ** 3], axis=-1)
    rows = compare_loo({"wild": leave_one_out(wild), "tame": leave_one_out(log_likelihood())})
    assert rows["wild"]["bad_k"] >= 3
    assert rows["tame"]["bad_k"] == 0
    assert rows["tame"]["elpd_diff"] == 0
    assert rows["wild"]["elpd_diff"] == pytest.approx(
        rows["wild"]["elpd_loo"] - rows["tame"]["elpd_loo"], abs=1e-6
    )


def test_waic_by_hand() -> None:
    first, second = -1.0, -3.0  # two draws of one item
    density = math.log((math.exp(first) + math.exp(second)) / 2)
    assert waic(np.array([[[first], [second]]])) == (pytest.approx(density - 1), pytest.approx(1))


def test_an_item_on_which_all_draws_agree() -> None:
    scores = log_likelihood()
    scores[..., 3] = -0.5
    assert compare_loo({"x": leave_one_out(scores)})["x"]["bad_k"] == 0


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((1, 29, 4)), "at least 30 draws"),
        (np.zeros((1, 40, 4)), "the same in every draw"),
        (np.full((1, 40, 4), -np.inf), "160 entries that are not finite"),
    ],
)
def test_scores_without_a_leave_one_out(scores, message) -> None:
    with pytest.raises(ValueError, match=message):
        leave_one_out(scores)


def test_rows_hold_the_figures_of_each() -> None:
    posteriors = {"sharp": FakePosterior(sharpness=4.0), "flat": FakePosterior(sharpness=1.0)}
    comparison = compare(posteriors, iter(items(60)), fitted_to=iter(TRAINING))
    assert [row["name"] for row in comparison.table] == ["sharp", "flat"]
    for row, posterior in zip(comparison.table, posteriors.values(), strict=True):
        prediction = posterior.predict(items(60), 32, 0)
        figures = metrics.evaluate_log_probs(prediction.log_probs, prediction.labels)
        for name in ("accuracy", "nll", "ece"):
            assert row[name] == pytest.approx(figures[name], abs=1e-5)
        container = to_arviz(posterior, items(60), fitted_to=TRAINING)
        assert row["khat"] == pytest.approx(khat(container))
        own = to_arviz(posterior, TRAINING)["log_likelihood"]["y"].values
        assert row["elpd_loo"] == pytest.approx(compare_loo({"x": leave_one_out(own)})["x"]["elpd_loo"])
        assert row["elbo"] == pytest.approx(np.mean([step["elbo"] for step in posterior.history[-2:]]))
        assert "KL swamps the likelihood" in [alarm.name for alarm in row["alarms"]]
    assert sum(row["weight"] for row in comparison.table) == pytest.approx(1)
    assert comparison.fitted


def test_containers_and_chains_count_as_posteriors() -> None:
    first, second = FakePosterior(), FakePosterior(guide_mean=0.4)
    ready = to_arviz([first, second], items(), sites=())
    rows = compare({"ready": ready, "given": [first, second]}, items()).table
    assert {k: v for k, v in rows[0].items() if k != "name"} == {
        k: v for k, v in rows[1].items() if k != "name"
    }


@pytest.mark.parametrize(
    ("kind", "data", "keys"),
    [
        (FakeNumbers, number_items(40), {"rmse", "nll", "coverage_90", "elpd_loo"}),
        (FakeTexts, [{"score": items()[0]["logits"][:, 0]}], {"nll", "elpd_loo"}),
        (FakePosterior, None, {"elbo", "kl_W"}),
        (FakePosterior, items(labelled=False), {"elbo", "kl_W"}),
    ],
)
def test_other_kinds(kind, data, keys) -> None:
    comparison = compare({"first": kind(), "second": kind(guide_mean=0.2)}, data)
    assert keys <= comparison.table[0].keys()
    assert isinstance(comparison.figure(), Figure)
    assert "first" in str(comparison)


def test_real_posteriors_and_a_point_among_them() -> None:
    data, posteriors = [tiny_batch()], {}
    for method in ("lora", "bayesian-lora-mf"):
        recipe = METHODS[method](tiny_bert(), "classification", 5)
        posteriors[method] = Posterior(
            recipe.model, recipe.guide, metadata={"num_data": 5, "kl_weight": 0.02}
        )
    point, bayesian = compare(posteriors, data, fitted_to=data).table
    assert point["extra_parameters"] == 0 < bayesian["extra_parameters"]
    assert {"accuracy", "nll", "ece"} <= point.keys()
    assert not {"khat", "elpd_loo"} & point.keys()
    assert {"khat", "elpd_loo", "elpd_waic"} <= bayesian.keys()


def test_one_factor_at_random_is_enough_for_khat() -> None:
    model = BayesianLora(tiny_bert(), {"A": "gaussian", "B": "point"}, num_data=5)
    (row,) = compare({"A": Posterior(model, MeanFieldGuide(model))}, [tiny_batch()], num_draws=30).table
    assert "khat" in row


def test_more_posteriors_than_colours_are_told_apart() -> None:
    rows = [{"name": str(i), "nll": i, "ece": i, "elpd_loo": i, "se": 1.0} for i in range(7)]
    looks = {
        (points.get_facecolor().tobytes(), points.get_paths()[0].vertices.tobytes())
        for points in Comparison(rows).figure().axes[1].collections
    }
    assert len(looks) == 7


def test_text_is_text_in_a_notebook_too(monkeypatch) -> None:
    comparison = Comparison([{"name": "mean field", "nll": 0.5, "elpd_diff": -0.01}])
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert "mean field" in str(comparison)
    assert "-0.0" not in str(comparison)


def test_what_is_shown(tmp_path) -> None:
    evil = "<b>[bold]mean field[/bold]</b>"
    comparison = compare({evil: FakePosterior(), "flow": FakePosterior(guide_mean=0.2)}, items(40))
    path = comparison.to_html(tmp_path / "deep" / "compare.html")
    source = path.read_text(encoding="utf-8")
    page = Page(source)
    assert [each.name for each in path.parent.iterdir()] == ["compare.html"]
    assert "http" not in source
    shown_by_itself = comparison._repr_html_()
    assert "<b>" not in source + shown_by_itself
    assert "<svg" in source
    assert "var(" not in shown_by_itself  # a notebook does not know the colours of the page
    text = str(comparison)
    assert repr(comparison) == text
    for shown in (
        f"{comparison.table[0]['nll']:.3f}",
        "k-hat",
        "LOO",
        "KL swamps",
        "Of items that it has not seen",
    ):
        assert shown in text
        assert shown in page.text
    assert evil in text
    assert len(comparison.figure().axes) == 2
    fitted = compare({"flow": FakePosterior()}, items(40), fitted_to=TRAINING)
    assert "Of items that it has not seen" not in str(fitted)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: compare({}), "posteriors is empty"),
        (
            lambda: compare(
                {"a": to_arviz(FakePosterior(), items()), "b": to_arviz(FakePosterior(), items(seed=1))}
            ),
            r"posteriors\['b'\] was given other items than posteriors\['a'\]",
        ),
        (
            lambda: compare({"a": to_arviz(FakePosterior(), fitted_to=TRAINING), "b": FakePosterior()}),
            r"the same fitted_to",
        ),
    ],
)
def test_what_cannot_be_compared(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()
