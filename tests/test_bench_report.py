"""Reports of made-up cells: what stands in them, and that they need nothing but the folders."""

import csv
import io
import re
import shutil

import pytest
import torch

from bayeslora_pyro import metrics
from bayeslora_pyro.bench.lines import groups_of, headlines, lines_of
from bayeslora_pyro.bench.paired import differences, interval_of_mean, item_scores
from bayeslora_pyro.bench.predictions import Raw
from bayeslora_pyro.bench.report import write_report
from bayeslora_pyro.bench.storing import read_cells
from bayeslora_pyro.bench.tables import cost_table, main_table, mean_table

from . import bench_cells
from .bench_cells import PROTOCOL, cell_of, raw_of, write_made_up

METHODS = ("lora", "ensemble", "tfb", "blob", "laplace-lora", "bayesian-lora")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Six methods, two seeds, and a second size; not to be changed."""
    output = tmp_path_factory.mktemp("bench")
    for method in METHODS:
        for seed in (0, 1):
            write_made_up(output, cell_of(method, seed))
        write_made_up(output, cell_of(method, 0, "all"))
    write_report(output)
    return output


def group_of(output, size=400):
    return next(group for group in groups_of(read_cells(output)) if group.size == size)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_rebuilt_from_the_folders_alone_it_is_the_same(finished, tmp_path):
    shutil.copytree(finished / "cells", tmp_path / "cells")
    write_report(tmp_path)
    ours, theirs = contents(finished / "report"), contents(tmp_path / "report")
    assert ours == theirs
    assert {"tables.md", "tables.tex", "figures.csv"} < set(ours)
    for kind in ("reliability", "accuracy-ece", "draws", "shift"):
        assert f"{kind}_sentiment_minilm_400.png" in ours
    assert "size_sentiment_minilm.png" in ours


def test_a_changed_cell_changes_the_report(finished, tmp_path):
    shutil.copytree(finished / "cells", tmp_path / "cells")
    shutil.rmtree(tmp_path / "cells" / cell_of("blob", 1).name)
    write_report(tmp_path)
    ours, theirs = contents(finished / "report"), contents(tmp_path / "report")
    assert ours["tables.md"] != theirs["tables.md"]
    assert ours["figures.csv"] != theirs["figures.csv"]


def test_figures_are_means_and_deviations_over_seeds(finished):
    rows = {row[0].text: [each.text for each in row] for row in main_table(group_of(finished), "test").rows}
    assert list(rows) == [
        "lora",
        "ensemble‡",
        "tfb",
        "laplace-lora",
        "blob",
        "bayesian-lora",
        "lora + temperature†",
        "tfb + temperature†",
        "laplace-lora + temperature†",
        "blob + temperature†",
        "bayesian-lora + temperature†",
    ]
    nlls = torch.tensor(
        [
            metrics.nll(raw["test"].log_probs[:10], raw["test"].labels)
            for raw in (raw_of(seed=40), raw_of(seed=41))
        ]
    )
    assert rows["blob"][1] == "2"
    assert [f"{float(part):.3f}" for part in rows["blob"][3].split(" ± ")] == [
        f"{nlls.mean():.3f}",
        f"{nlls.std():.3f}",
    ]


def test_the_best_single_model_without_further_labels_is_bold(finished):
    group = group_of(finished)
    table = main_table(group, "test")
    bold = {row[0].text for row in table.rows if row[3].is_best}
    lines = {line.label + line.mark: line for line in headlines(lines_of(group, "test"))}
    plain = {label: line.mean("nll") for label, line in lines.items() if not line.mark}
    assert bold == {min(plain, key=plain.get)}
    assert not any("†" in label or "‡" in label for label in bold)


def test_costs_stand_beside_every_method(finished):
    table = cost_table(group_of(finished))
    rows = {row[0].text: [each.text for each in row[1:]] for row in table.rows}
    assert set(rows) == {"lora", "ensemble‡", "tfb", "laplace-lora", "blob", "bayesian-lora"}
    assert rows["lora"] == ["14", "+2", "1.10", "1", "2.00", "1.50", "2", "0", "500"]
    assert rows["tfb"][6] == ""


def test_every_row_of_every_cell_is_in_the_csv(finished):
    text = (finished / "report" / "figures.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert len(rows) == sum(len(stored.rows) for stored in read_cells(finished))
    (row,) = (
        row
        for row in rows
        if (row["method"], row["seed"], row["size"], row["set"], row["variant"], row["draws"])
        == ("blob", "1", "400", "test", "", "10")
    )
    raw = raw_of(seed=41)["test"]
    assert float(row["nll"]) == pytest.approx(metrics.nll(raw.log_probs[:10], raw.labels))
    assert float(row["inference_ratio"]) == 32.0


def test_latex_and_markdown_tell_the_same(finished):
    latex = (finished / "report" / "tables.tex").read_text(encoding="utf-8")
    markdown = (finished / "report" / "tables.md").read_text(encoding="utf-8")
    assert latex.count(r"\begin{table}") == markdown.count("\n### ") - 1  # the last is of figures
    assert not re.search(r"(?<!\\)[%_#&](?! )", re.sub(r"&", "", latex))
    assert not set("±†‡×Δ→") & set(latex)
    for image in re.findall(r"\]\((.*png)\)", markdown):
        assert (finished / "report" / image).stat().st_size > 5_000
    assert "Published elsewhere" in markdown
    assert "2406.11675" in markdown


def paired_by_hand(method="blob", shuffled=False):
    """The mean difference of NLL to LoRA over two seeds, and its interval, with resamples drawn one by one."""
    gaps = []
    for seed in (0, 1):
        ours = raw_of(seed=seed + 10 * len(method))["test"]
        theirs = raw_of(1, seed=seed + 40)["test"]
        scores = [item_scores(own, ours.labels)["nll"] for own in (ours.log_probs[:10], theirs.log_probs)]
        gaps.append(scores[0] - (scores[1].flip(0) if shuffled else scores[1]))
    mean = torch.stack(gaps).mean(0)
    return [float(mean.mean()), *metrics.bootstrap(lambda some: float(some.mean()), mean)]


def check_paired(expected, finished):
    found = {each.label: each for each in differences(group_of(finished), "test")}
    assert found["blob"].num_seeds == 2
    assert list(found["blob"].intervals["nll"]) == pytest.approx(expected)
    assert "lora" not in found


def test_differences_to_lora_are_paired_by_item(finished):
    check_paired(paired_by_hand(), finished)


def test_differences_that_are_not_paired_are_caught(finished):
    with pytest.raises(AssertionError):
        check_paired(paired_by_hand(shuffled=True), finished)


def test_cells_of_other_items_are_not_paired(tmp_path, monkeypatch):
    write_made_up(tmp_path, cell_of("lora"))
    turned = {name: Raw(own.log_probs.flip(1), own.labels.flip(0)) for name, own in raw_of().items()}
    monkeypatch.setattr(bench_cells, "raw_of", lambda *args, **options: turned)
    write_made_up(tmp_path, cell_of("blob"))
    with pytest.raises(ValueError, match="have other items in the set test"):
        differences(group_of(tmp_path), "test")


def test_scores_of_items_have_the_metrics_for_means():
    raw = raw_of()["test"]
    scores = item_scores(raw.log_probs, raw.labels)
    for name in ("accuracy", "nll", "brier"):
        assert float(scores[name].mean()) == pytest.approx(getattr(metrics, name)(raw.log_probs, raw.labels))
    low, high = interval_of_mean(scores["nll"])
    assert low < float(scores["nll"].mean()) < high


def test_cells_of_two_protocols_are_not_put_into_one_table(tmp_path):
    write_made_up(tmp_path, cell_of("lora"))
    write_made_up(tmp_path, cell_of("blob"), PROTOCOL.changed(num_steps=20))
    with pytest.raises(ValueError, match="was done by another protocol than"):
        write_report(tmp_path)


def test_published_quirks_are_named_in_every_output(tmp_path):
    write_made_up(tmp_path, cell_of("lora"), PROTOCOL.changed(blob_compat=True))
    folder = write_report(tmp_path)
    for name, word in {
        "tables.md": "blob_compat",
        "tables.tex": r"blob\_compat",
        "figures.csv": "True",
    }.items():
        assert word in (folder / name).read_text(encoding="utf-8")


def test_means_over_tasks_are_of_the_methods_that_all_have(tmp_path):
    for task, methods in {"sentiment": ("lora", "blob", "map"), "questions": ("lora", "blob")}.items():
        for method in methods:
            write_made_up(tmp_path, cell_of(method, seed=len(task), task=task))
    groups = groups_of(read_cells(tmp_path))
    table = mean_table(groups)
    rows = {row[0].text: [each.text for each in row[1:]] for row in table.rows}
    assert list(rows) == ["lora", "blob", "lora + temperature†", "blob + temperature†"]
    own = [raw_of(seed=40 + len(task))["test"] for task in ("sentiment", "questions")]
    nll = sum(metrics.nll(raw.log_probs[:10], raw.labels) for raw in own) / 2
    assert float(rows["blob"][1]) == pytest.approx(nll, abs=6e-4)
    assert mean_table(groups[:1]) is None
    assert "Mean over tasks" in (write_report(tmp_path) / "tables.md").read_text(encoding="utf-8")
