"""Which cells there are, and how each is called."""

import pytest

from bayeslora_pyro import METHODS
from bayeslora_pyro.bench.cells import Cell, Protocol
from bayeslora_pyro.bench.contenders import describe, fit_key
from bayeslora_pyro.bench.tiers import ALL, MAIN, TIERS, select_jobs
from bayeslora_pyro.tasks import TASKS

from .bench_cells import PROTOCOL, cell_of


def cells(tier, **options):
    return [job.cell for job in select_jobs(tier, **options)]


def test_every_method_is_in_every_tier():
    assert set(ALL) == {"base", *METHODS}
    for tier in TIERS:
        assert {cell.method for cell in cells(tier)} >= set(METHODS), tier


def test_only_choices_have_a_base_model_as_it_is():
    kinds = {TASKS[cell.task].kind for tier in TIERS for cell in cells(tier) if cell.method == "base"}
    assert kinds == {"choice"}


def test_folders_of_different_cells_differ():
    for tier in TIERS:
        names = [cell.name for cell in cells(tier)]
        assert len(set(names)) == len(names)
    assert cell_of().name == "sentiment_minilm_400_lora_seed0"
    assert Cell("openbookqa", "meta-llama/Llama-2-7b-hf@8bit", "blob", "all", 1).name == (
        "openbookqa_meta-llama-Llama-2-7b-hf-8bit_all_blob_seed1"
    )


def test_what_is_given_takes_the_place_of_the_tiers_own():
    chosen = cells("cpu", tasks=["sentiment", "openbookqa"], methods=["map"], sizes=[50], seeds=[7])
    assert [(cell.task, cell.model, cell.method, cell.size, cell.seed) for cell in chosen] == [
        ("sentiment", "minilm", "map", 50, 7),
        ("openbookqa", "smollm2", "map", 50, 7),
    ]
    (job,) = select_jobs("smoke", methods=["lora"], num_steps=3, dtype=None)
    assert job.protocol.num_steps == 3
    assert job.protocol.dtype == "float32"


def test_seeds_come_one_after_another():
    seeds = [cell.seed for cell in cells("cpu")]
    assert seeds == sorted(seeds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tier": "huge"}, "there is no tier 'huge'"),
        ({"tier": "smoke", "methods": ["lorra"]}, "there is no method 'lorra'"),
        ({"tier": "smoke", "tasks": ["bandgap"]}, "there is no task 'bandgap' of classes or choices"),
        ({"tier": "smoke", "tasks": ["openbookqa"]}, "no cell of tier 'smoke' is left"),
        ({"tier": "smoke", "sizes": [0]}, "size should be"),
        ({"tier": "smoke", "num_test": 0}, "num_test should be at least 1"),
        ({"tier": "gpu", "models": ["x@3bit"]}, "should end in @8bit, @4bit"),
    ],
)
def test_wrong_choices_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        select_jobs(**options)


def test_the_published_protocol_is_what_a_cell_is_fitted_by():
    """The field's settings, as BLoB and its successors give them."""
    job = next(job for job in select_jobs("gpu") if job.cell.method == "lora")
    assert job.cell.bits == 8
    fit = describe(job.cell, job.protocol)["fit"]
    assert fit["learning_rate"] == pytest.approx(1e-4)
    assert (fit["num_steps"], fit["warmup"], fit["schedule"], fit["snapshots"]) == (5000, 0.06, "linear", 1)
    protocol = job.protocol
    assert (protocol.r, protocol.lora_alpha, protocol.batch_size, protocol.scoring) == (8, 16, 4, "letters")
    assert protocol.target_modules == ("q_proj", "v_proj", "lm_head")
    assert {cell.seed for cell in cells("gpu")} == {0, 1, 2}
    assert {cell.bits for cell in cells("gpu")} == {8, 4}


def test_protocols_come_back_from_their_records():
    for tier in TIERS:
        for job in select_jobs(tier, seeds=[0], methods=list(MAIN)):
            assert Protocol.of(job.protocol.record()) == job.protocol


@pytest.mark.parametrize("method", ["tfb", "laplace-lora", "laplace-lora-last-layer", "ensemble"])
def test_methods_that_finish_a_lora_share_its_fit(method):
    assert fit_key(cell_of(method), PROTOCOL) == fit_key(cell_of("lora"), PROTOCOL)


@pytest.mark.parametrize("method", ["map", "checkpoint-ensemble", "blob", "mc-dropout"])
def test_other_methods_share_no_fit(method):
    assert fit_key(cell_of(method), PROTOCOL) != fit_key(cell_of("lora"), PROTOCOL)
    assert fit_key(cell_of("lora", seed=1), PROTOCOL) != fit_key(cell_of("lora"), PROTOCOL)
    assert fit_key(cell_of("lora"), PROTOCOL.changed(num_steps=11)) != fit_key(cell_of("lora"), PROTOCOL)
