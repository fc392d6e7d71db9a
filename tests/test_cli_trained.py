"""`fit --adapter`: a trained LoRA gets its posterior without a fit, wherever it is from; and what does not fit it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from bayeslora_pyro import METHODS, Posterior
from bayeslora_pyro.methods import POST_HOC
from bayeslora_pyro.tasks import load_base_model

from .cli_files import (
    MOODS,
    STARS,
    bayeslora,
    bert,
    fitted,
    llama,
    load_run,
    questions,
    snapshot,
    write,
)
from .damage import resign
from .tiny import tiny_batch, tiny_bert

__all__ = ["bert", "fitted", "llama"]

TRAIN = ["--num-steps", 25, "--batch-size", 8, "--learning-rate", 1e-2, "--r", 2, "--lora-alpha", 6]


@pytest.fixture(scope="module")
def trained(fitted: Path, bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a LoRA on the moods of the reviews."""
    run = tmp_path_factory.mktemp("trained") / "run"
    arguments = ["--model", bert, "--data", fitted / "reviews.csv", *MOODS, *TRAIN, "--method", "lora"]
    assert bayeslora("fit", *arguments, "--output", run) == 0
    return run


@pytest.fixture
def command(fitted: Path, bert: Path, tmp_path: Path) -> list[Any]:
    return ["fit", "--model", bert, "--data", fitted / "reviews.csv", "--output", tmp_path / "run"]


def plain(run: Path, folder: Path) -> Path:
    """What anyone else would have: PEFT's two files alone."""
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(run / name, folder)
    return folder


def record_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


def test_post_hoc_methods_are_those_with_a_step_after_the_fit() -> None:
    recipes = {name: METHODS[name](tiny_bert(), "classification", 10) for name in METHODS}
    assert {name for name, own in recipes.items() if own.finish and own.finish.post_hoc} == {*POST_HOC}
    for method in ("lora", "bayesian-lora"):
        with pytest.raises(ValueError, match="choose one of POST_HOC"):
            recipes[method].finish_trained([])


@pytest.mark.parametrize("method", POST_HOC)
@pytest.mark.parametrize("source", ["ours", "plain"])
def test_a_trained_lora_is_the_mean_and_needs_no_fit(
    method: str, source: str, trained: Path, command: list[Any], bert: Path, tmp_path: Path
) -> None:
    adapter = trained if source == "ours" else plain(trained, tmp_path / "adapter")
    tolerance = ["--tfb.tolerance", 0.2] if method == "tfb" else []
    assert bayeslora(*command, *MOODS, "--method", method, "--adapter", adapter, *tolerance) == 0
    run = tmp_path / "run"
    given, found = load_file(adapter / "adapter_model.safetensors"), load_run(run, bert)
    start = load_run(trained, bert)
    assert found.history == []
    for name, value in found.model.head_values().items():
        assert torch.equal(value, start.model.head_values()[name])
    if method != "tfb":  # which turns A and B against each other
        saved = load_file(run / "adapter_model.safetensors")
        assert all(torch.equal(saved[name], given[name]) for name in given)
    record = record_of(run)
    assert record["finished"]
    assert record["fit"] is None
    assert record["options"]["adapter"] == str(adapter)
    assert record["options"]["r"] is None
    assert record["objective"].startswith("a LoRA that was trained already, then ")
    assert "kl_weight" not in found.metadata
    assert not (run / "checkpoint.safetensors").exists()


def test_it_is_what_a_fit_would_have_ended_in(
    trained: Path, command: list[Any], bert: Path, tmp_path: Path
) -> None:
    """The curvature at a LoRA is the same whether the LoRA was fitted just now or loaded."""
    assert bayeslora(*command, *MOODS, "--method", "laplace-lora", "--adapter", trained) == 0
    again = [*command[:-1], tmp_path / "whole", *MOODS, *TRAIN, "--method", "laplace-lora"]
    assert bayeslora(*again) == 0
    loaded, whole = (load_run(tmp_path / name, bert) for name in ("run", "whole"))
    precisions = [each.metadata["laplace"]["precision"][0] for each in (loaded, whole)]
    assert precisions[0] == pytest.approx(precisions[1], rel=1e-4)
    for name, value in loaded.mean_adapter().items():
        torch.testing.assert_close(value, whole.mean_adapter()[name])
    draws = [each.weights(2, 3) for each in (loaded, whole)]
    for name in draws[0]:
        torch.testing.assert_close(draws[0][name], draws[1][name], rtol=1e-3, atol=1e-4)


def test_it_is_scored_reported_and_drawn_from(trained: Path, command: list[Any], tmp_path: Path) -> None:
    config = tmp_path / "fit.yaml"
    config.write_text(f"adapter: {trained}\nmethod: laplace-lora\nlaplace:\n  per: role\n")
    assert bayeslora(*command, *MOODS, "--config", config) == 0
    run = tmp_path / "run"
    assert bayeslora("evaluate", run, "--json", tmp_path / "m.json", "--temperature") == 0
    assert json.loads((tmp_path / "m.json").read_text())["reviews"]["n"] == 12
    assert bayeslora("report", run, "--num-draws", 30) == 0
    assert "Laplace approximation" in (run / "report.html").read_text()
    assert bayeslora("draws", run, "--num", 2) == 0
    assert bayeslora("fit", "--resume", "--output", run) == 0  # there is nothing to resume
    drawn = [*command[:-1], tmp_path / "next", *MOODS, "--method", "laplace-lora"]
    assert bayeslora(*drawn, "--adapter", run / "draws" / "draw-000") == 0


def test_choices_have_no_head(llama: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "quiz.jsonl", questions(40))
    common = ["fit", "--model", llama, "--data", file]
    lora = [*common, *TRAIN, "--method", "lora", "--output", tmp_path / "lora"]
    assert bayeslora(*lora) == 0
    after = [*common, "--method", "laplace-lora", "--adapter", tmp_path / "lora"]
    assert bayeslora(*after, "--output", tmp_path / "run") == 0
    assert bayeslora("evaluate", tmp_path / "run") == 0


def test_the_noise_of_numbers_is_found_again(
    command: list[Any], bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No adapter holds it; its maximum likelihood is the root of the mean squared residual."""
    arguments = [*command[:-1], tmp_path / "lora", *STARS, *TRAIN, "--method", "lora"]
    assert bayeslora(*arguments) == 0
    for name in ("run", "off"):
        adapter = plain(tmp_path / "lora", tmp_path / f"adapter-{name}")
        if name == "off":  # the same LoRA, with predictions in other units
            tensors = load_file(adapter / "adapter_model.safetensors")
            shifted = {k: v + 100 * k.endswith("classifier.bias") for k, v in tensors.items()}
            save_file(shifted, adapter / "adapter_model.safetensors", {"format": "pt"})
        capsys.readouterr()
        after = [*command[:-1], tmp_path / name, *STARS, "--method", "laplace-lora", "--adapter", adapter]
        assert bayeslora(*after) == 0
        assert ("no better than their mean" in capsys.readouterr().err) == (name == "off")
    base_model, _ = load_base_model(str(bert), task_type="regression")
    scale = float(Posterior.load(tmp_path / "run", base_model).model.likelihood.scale.detach())
    assert 0 < scale < 1
    assert bayeslora("evaluate", tmp_path / "run") == 0


def test_noise_has_its_maximum_likelihood() -> None:
    batches = [tiny_batch("regression", items=6, seed=seed) for seed in range(2)]
    recipe = METHODS["laplace-lora"](tiny_bert(num_labels=1), "regression", 12)
    scale = recipe.model.likelihood.scale
    before = float(scale.detach())
    found = recipe.finish_trained(batches).posterior

    def slope(scale: float) -> float:
        """The derivative of the log-likelihood, by differences, at the mean."""
        values = []
        for moved in (scale * (1 + 1e-4), scale * (1 - 1e-4)):
            prediction = Posterior(recipe.model, recipe.guide).predict(batches, 1)
            normal = torch.distributions.Normal(prediction.loc[0].double(), moved)
            values.append(float(normal.log_prob(prediction.labels.double()).sum()))
        return (values[0] - values[1]) / 2e-4

    assert abs(slope(float(found.model.likelihood.scale.detach()))) < 1e-3
    assert abs(slope(before)) > 0.1  # the planted fault: noise that nobody has learned


def test_tuning_items_choose_the_precision(
    trained: Path, command: list[Any], bert: Path, tmp_path: Path
) -> None:
    flags = ["--laplace.precision", "tuning", "--tuning", 12]
    assert bayeslora(*command, *MOODS, "--method", "laplace-lora", "--adapter", trained, *flags) == 0
    found = load_run(tmp_path / "run", bert).metadata["laplace"]
    assert found["chosen_by"] == "tuning"
    fit = [*command[:-1], tmp_path / "fit", *MOODS, *TRAIN, "--method", "laplace-lora-last-layer", *flags]
    assert bayeslora(*fit) == 0
    assert load_run(tmp_path / "fit", bert).metadata["laplace"]["chosen_by"] == "tuning"
    assert bayeslora("evaluate", tmp_path / "fit") == 0


def test_in_the_library_tuning_items_and_their_use_belong_together() -> None:
    for options in ({"precision": "tuning"}, {"tuning": []}):
        with pytest.raises(ValueError, match="belong together"):
            METHODS["laplace-lora"](tiny_bert(), "classification", 10, **options)


AFTER = "--method laplace-lora --adapter"

MISTAKES = {
    # The rest of the command line, and what its one line has to hold.
    "method that is a fit": (
        "--method bayesian-lora --adapter lora",
        ["--adapter lora", "tfb, laplace-lora"],
    ),
    "default method": ("--adapter lora", ["--method bayesian-lora", "laplace-lora-last-layer"]),
    "rank": (f"{AFTER} lora --r 8", ["--r 8", "has its own", "leave it out"]),
    "scaling": (f"{AFTER} lora --lora-alpha 16", ["--lora-alpha 16", "has its own"]),
    "modules": (f"{AFTER} lora --target-modules query", ["--target-modules query", "has its own"]),
    "steps": (f"{AFTER} lora --num-steps 5", ["--num-steps 5", "is not fitted"]),
    "chains": (f"{AFTER} lora --num-chains 2", ["--num-chains 2", "is not fitted"]),
    "missing folder": (f"{AFTER} lra", ["--adapter lra", "no such folder"]),
    "folder without an adapter": (f"{AFTER} empty", ["--adapter empty", "no adapter_config.json"]),
    "folder without tensors": (f"{AFTER} bare", ["--adapter bare", "no adapter_model.safetensors"]),
    "configuration that is cut": (f"{AFTER} cut-config", ["cut-config/adapter_config.json", "damaged"]),
    "tensors that are cut": (f"{AFTER} cut", ["cut/adapter_model.safetensors", "damaged", "copy"]),
    "run whose tensors were changed": (f"{AFTER} changed", ["--adapter", "changed", "not the file"]),
    "another architecture": (f"{AFTER} decoder", ["--adapter decoder", "task_type is CAUSAL_LM"]),
    "deeper base model": (f"{AFTER} deeper", ["--adapter deeper", "another base model", "in it alone"]),
    "other modules": (
        f"{AFTER} unknown-modules",
        ["--adapter unknown-modules", "another base model", "c_attn"],
    ),
    "lost tensor": (f"{AFTER} lost", ["--adapter lost", "missing in it", "another base model"]),
    "wider base model": (f"{AFTER} wider", ["--adapter wider", "lora_A", "2 x 8", "2 x 16"]),
    "base model of other weights": (f"{AFTER} elsewhere", ["--adapter elsewhere", "give --model", "tiny"]),
    "other number of classes": (f"{AFTER} three", ["--adapter three", "classifier", "3", "2", "classes"]),
    "other classes": (f"{AFTER} renamed", ["--adapter renamed", "bad, good", "neg, pos"]),
    "no LoRA": (f"{AFTER} ia3", ["--adapter ia3", "no LoRA layers", "IA3"]),
    "no plain LoRA": (f"{AFTER} dora", ["--adapter dora", "use_dora=False"]),
    "tuning items that are not there": (
        f"{AFTER} lora --laplace.precision tuning --tuning 0",
        ["--laplace.precision tuning", "raise --tuning"],
    ),
    "word for a precision": (f"{AFTER} lora --laplace.precision best", ["best", "evidence, tuning"]),
}


def edited(folder: Path, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(edit(tensors), folder / "adapter_model.safetensors", {"format": "pt"})


def _save(folder: Path, base: Path, config: Any, num_labels: int = 2) -> None:
    base_model, _ = load_base_model(str(base), task_type="classification", num_labels=num_labels)
    with torch.random.fork_rng(devices=[]):
        get_peft_model(base_model, config).save_pretrained(str(folder), save_embedding_layers=False)


@pytest.fixture(scope="module")
def shelf(trained: Path, fitted: Path, bert: Path, llama: Path, tmp_path_factory) -> Path:
    """Trained LoRAs, most of them spoilt or of something else."""
    folder = tmp_path_factory.mktemp("shelf")
    shutil.copy(fitted / "reviews.csv", folder)
    for name in ("bare", "cut-config", "cut", "lost", "unknown-modules", "lora"):
        plain(trained, folder / name)
    (folder / "empty").mkdir()
    (folder / "bare" / "adapter_model.safetensors").unlink()
    config = folder / "cut-config" / "adapter_config.json"
    config.write_text(config.read_text()[:50])
    tensors = folder / "cut" / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-8])
    edited(folder / "lost", lambda tensors: dict(list(tensors.items())[:-1]))
    config = folder / "unknown-modules" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"target_modules": ["c_attn"]}))
    for name in ("changed", "elsewhere", "renamed"):
        shutil.copytree(trained, folder / name)
    edited(folder / "changed", lambda tensors: {k: v + 1 for k, v in tensors.items()})
    _change(folder / "elsewhere", _exchange_base)
    _change(folder / "renamed", lambda record: record["metadata"].update(label_names=["bad", "good"]))
    options: dict[str, Any] = {"r": 2, "task_type": "SEQ_CLS", "target_modules": ["query", "value"]}
    _save(folder / "three", bert, LoraConfig(**options), num_labels=3)
    _save(folder / "dora", bert, LoraConfig(**options, use_dora=True))
    ia3 = {"task_type": "SEQ_CLS", "target_modules": ["query"], "feedforward_modules": []}
    _save(folder / "ia3", bert, IA3Config(**ia3))
    for name, sizes in (
        ("deeper", {"num_layers": 3, "hidden": 16}),
        ("wider", {"num_layers": 2, "hidden": 8}),
    ):
        tiny_bert(num_labels=2, **sizes).save_pretrained(str(folder / name), save_embedding_layers=False)
    base_model, _ = load_base_model(str(llama), task_type="choice")
    lora = LoraConfig(r=2, task_type="CAUSAL_LM", target_modules=["q_proj"])
    get_peft_model(base_model, lora).save_pretrained(str(folder / "decoder"), save_embedding_layers=False)
    return folder


def _exchange_base(record: dict[str, Any]) -> None:
    """Makes the base model of a posterior another one than that it has."""
    _, sample = next(iter(record["base"]["layers"].values()))
    sample[0] = 9.0


def _change(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = run / "posterior_config.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    resign(run)


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_named_in_one_line(
    name: str, shelf: Path, bert: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line, fragments = MISTAKES[name]
    monkeypatch.chdir(shelf)
    before = snapshot(shelf)
    assert bayeslora("fit", "--model", bert, "--data", "reviews.csv", *MOODS, *line.split()) == 2
    captured = capfd.readouterr()
    (message,) = captured.err.splitlines()
    assert message.startswith("bayeslora: ")
    assert [fragment for fragment in fragments if fragment not in message] == []
    assert captured.out == ""
    assert snapshot(shelf) == before


def test_an_untrained_lora_leaves_nothing_behind(
    bert: Path, command: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _save(tmp_path / "fresh", bert, LoraConfig(r=2, task_type="SEQ_CLS", target_modules=["query"]))
    assert bayeslora(*command, *MOODS, "--method", "tfb", "--adapter", tmp_path / "fresh") == 2
    assert "All factors B are zero" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
