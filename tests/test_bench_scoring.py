"""From raw predictions to figures: the protocol of the benchmark, and faults planted into it."""

import dataclasses
import math

import pytest
import torch

from bayeslora_pyro import metrics
from bayeslora_pyro.bench import scoring
from bayeslora_pyro.bench.cells import NUM_DRAWS
from bayeslora_pyro.bench.predictions import Raw, from_tensors, to_tensors
from bayeslora_pyro.bench.scoring import score

from .bench_cells import raw_of


def rows_of(raw, *, members=1, many_draws=8, **options):
    rows = score(raw, members=members, many_draws=many_draws, **options)
    return {(row["set"], row["variant"], row["draws"]): row for row in rows}


def check_plain(raw=None, given=None):
    """The figures with N draws, by a definition of their own: loops over items, and means of probabilities."""
    raw = raw or raw_of()
    rows = rows_of(given or raw)
    probs, labels = raw["test"].log_probs.double().exp(), raw["test"].labels.tolist()
    for count in NUM_DRAWS:
        means = [
            [sum(p) / count for p in zip(*item, strict=True)]
            for item in probs[:count].transpose(0, 1).tolist()
        ]
        nll = -sum(math.log(p[y]) for p, y in zip(means, labels, strict=True)) / len(labels)
        right = sum(p.index(max(p)) == y for p, y in zip(means, labels, strict=True)) / len(labels)
        assert rows["test", "", count]["nll"] == pytest.approx(nll, abs=1e-9)
        assert rows["test", "", count]["accuracy"] == pytest.approx(right)


def test_probabilities_of_the_first_draws_are_averaged():
    check_plain()


def test_averaging_logits_is_caught(monkeypatch):
    real = scoring.variants

    def faulty(*args, **options):
        for variant in real(*args, **options):
            means = {
                name: own.mean(0, keepdim=True).log_softmax(-1) for name, own in variant.log_probs.items()
            }
            yield dataclasses.replace(variant, log_probs=means)

    monkeypatch.setattr(scoring, "variants", faulty)
    with pytest.raises(AssertionError):
        check_plain()


def test_the_last_draws_in_the_place_of_the_first_are_caught():
    raw = raw_of()
    turned = raw | {"test": dataclasses.replace(raw["test"], log_probs=raw["test"].log_probs.flip(0))}
    with pytest.raises(AssertionError):
        check_plain(raw, given=turned)


def check_temperature(raw, given=None):
    """The temperature minimises the NLL of the tuning set, found on a grid."""
    rows = rows_of(given or raw)
    for count in NUM_DRAWS:
        mean = metrics.mean_log_probs(raw["tuning"].log_probs[:count])
        grid = torch.linspace(-2, 2, 4001, dtype=torch.float64).exp()
        losses = [metrics.nll((mean / t).log_softmax(-1), raw["tuning"].labels) for t in grid[::40].tolist()]
        best = float(grid[::40][int(torch.tensor(losses).argmin())])
        row = rows["test", "+ts", count]
        assert row["temperature"] == pytest.approx(best, rel=0.05)
        scaled = (metrics.mean_log_probs(raw["test"].log_probs[:count]) / row["temperature"]).log_softmax(-1)
        assert row["nll"] == pytest.approx(metrics.nll(scaled, raw["test"].labels))


def test_temperature_is_fitted_to_the_tuning_set_and_applied_to_the_test_set():
    check_temperature(raw_of())


def test_a_temperature_of_the_test_set_is_caught():
    raw = raw_of()
    with pytest.raises(AssertionError):
        check_temperature(raw, given=raw | {"tuning": raw["test"]})


def test_an_ensemble_predicts_with_all_its_members_only():
    counts = {draws for _, variant, draws in rows_of(raw_of(draws=3), members=3) if variant == ""}
    assert counts == {3}


def test_a_point_has_one_draw_and_no_disagreement():
    rows = rows_of(raw_of(draws=1))
    assert {draws for _, _, draws in rows} == {1}
    assert "auroc_information" not in rows["sentiment/amazon", "", 1]


def test_shifts_are_told_from_the_test_set():
    raw = raw_of()
    row = rows_of(raw)["sentiment/tweets", "", 10]
    inside, outside = (raw[name].log_probs[:10] for name in ("test", "sentiment/tweets"))
    assert row["auroc_entropy"] == metrics.auroc(metrics.entropy(inside), metrics.entropy(outside))
    assert row["auroc_information"] == metrics.auroc(metrics.epistemic(inside), metrics.epistemic(outside))
    assert "auroc_entropy" not in rows_of(raw)["test", "", 10]


def test_mean_and_many_draws_have_rows_of_their_own():
    raw = raw_of()
    extra = raw_of(draws=1, seed=5)
    raw = {
        name: Raw(own.log_probs, own.labels, extra[name].log_probs, extra[name].log_probs)
        for name, own in raw.items()
    }
    rows = rows_of(raw, many_draws=1000)
    assert rows["test", "+mean", 0]["nll"] == rows["test", "+many", 1000]["nll"]
    assert rows["test", "+mean", 0]["nll"] == pytest.approx(
        metrics.nll(extra["test"].log_probs, raw["test"].labels)
    )
    kept = from_tensors(to_tensors(raw))
    assert torch.equal(kept["test"].mean, raw["test"].mean)


class TestPublishedQuirks:
    def test_nll_is_the_mean_of_the_means_of_batches_of_four(self):
        raw = raw_of()
        short = {name: Raw(own.log_probs[:, :18], own.labels[:18]) for name, own in raw.items()}
        row = rows_of(short, blob_compat=True)["test", "", 4]
        mean = metrics.mean_log_probs(short["test"].log_probs[:4])
        own = -mean[torch.arange(18), short["test"].labels]
        parts = [own[:4], own[4:8], own[8:12], own[12:16], own[16:]]
        assert row["nll"] == pytest.approx(float(torch.stack([part.mean() for part in parts]).mean()))
        assert row["nll"] != pytest.approx(rows_of(short)["test", "", 4]["nll"], abs=1e-9)
        assert row["ece"] == rows_of(short)["test", "", 4]["ece"]

    def test_ensembles_average_logits(self):
        raw = raw_of(draws=3)
        row = rows_of(raw, members=3, blob_compat=True)["test", "", 3]
        logits = raw["test"].log_probs.double().mean(0).log_softmax(-1)
        assert row["brier"] == pytest.approx(metrics.brier(logits, raw["test"].labels))
        assert row["brier"] != pytest.approx(rows_of(raw, members=3)["test", "", 3]["brier"], abs=1e-6)
