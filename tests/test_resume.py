"""Interrupted and resumed runs: the numbers of one that was not interrupted, bit for bit."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, default_collate

from bayeslora_pyro.checkpoints import read_tensors, write_tensors
from bayeslora_pyro.config import FitConfig
from bayeslora_pyro.guides import FlowGuide, Guide, MeanFieldGuide
from bayeslora_pyro.inference import FitResult, fit
from bayeslora_pyro.loading import endless_batches
from bayeslora_pyro.models import BayesianLora, GaussianPrior, InducingPrior

from .tiny import Batch, tiny_batch, tiny_bert

ROOT = Path(__file__).resolve().parents[1]
STEPS = 6
OPTIONS: dict[str, Any] = {"num_steps": STEPS, "progress": False, "kl_warmup": 0.5, "schedule": "cosine"}


def items() -> list[Batch]:
    batch = tiny_batch(items=7)
    return [{name: value[i] for name, value in batch.items()} for i in range(7)]


def noisy_collate(rows: list[Batch]) -> Batch:
    """Hides some tokens at random, as a collator for masked language models does."""
    batch = default_collate(rows)
    hidden = torch.rand(batch["input_ids"].shape) < 0.2
    return batch | {"input_ids": batch["input_ids"].masked_fill(hidden, 3)}


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(5)


LOADERS: dict[str, Callable[[], Iterable[Batch]]] = {
    "list": lambda: [default_collate(items()[i : i + 2]) for i in (0, 2, 4, 5)],
    "shuffled": lambda: DataLoader(items(), 2, shuffle=True),
    "own-generator": lambda: DataLoader(items(), 2, shuffle=True, generator=generator()),
    "own-sampler": lambda: DataLoader(items(), 2, sampler=RandomSampler(range(7), generator=generator())),
    "batch-sampler": lambda: DataLoader(
        items(),
        batch_sampler=BatchSampler(RandomSampler(range(7), generator=generator()), 2, drop_last=False),
    ),
    "noisy": lambda: DataLoader(items(), 2, shuffle=True, collate_fn=noisy_collate),
}


def fresh(kind: str = "flow", **options: Any) -> tuple[BayesianLora, Guide]:
    model = BayesianLora(tiny_bert(dropout=0.3), InducingPrior(rows=3, cols=3), num_data=7, **options)
    return model, FlowGuide(model) if kind == "flow" else MeanFieldGuide(model)


def parameters(model: BayesianLora, guide: Guide) -> dict[str, Tensor]:
    return {f"{n}.{name}": t for n, m in (("m", model), ("g", guide)) for name, t in m.state_dict().items()}


def interrupt_at(step: int) -> Callable[[dict[str, float]], None]:
    def callback(row: dict[str, float]) -> None:
        if row["step"] == step:
            raise KeyboardInterrupt

    return callback


def assert_equal_runs(ours: FitResult, wanted: FitResult) -> None:
    assert ours.history == wanted.history
    pairs = [parameters(r.posterior.model, r.posterior.guide) for r in (ours, wanted)]
    assert pairs[0].keys() == pairs[1].keys()
    assert all(torch.equal(value, pairs[1][name]) for name, value in pairs[0].items())


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize(
    "options",
    [{"dropout": True}, {"accumulate": 2, "max_grad_norm": 0.5, "weight_decay": 0.1}],
    ids=["dropout", "accumulated"],
)
def test_resumed_run_is_bit_identical(loader: str, options: dict[str, Any], tmp_path: Path) -> None:
    make, kind = LOADERS[loader], "flow" if "dropout" in options else "mean_field"
    wanted = fit(*fresh(kind), make(), **OPTIONS, **options)
    path = tmp_path / "run.safetensors"
    for step in (0, 3):  # within an epoch of four batches, and again
        with pytest.raises(KeyboardInterrupt):
            fit(
                *fresh(kind),
                make(),
                **OPTIONS,
                **options,
                checkpoint=path,
                resume=True,
                callbacks=[interrupt_at(step)],
            )
        assert len(read_tensors(path)[1]["history"]) == step + 1
    torch.manual_seed(99)  # what is random elsewhere does not matter
    used = make()
    next(iter(used))
    assert_equal_runs(fit(*fresh(kind), used, **OPTIONS, **options, checkpoint=path, resume=True), wanted)
    assert list(tmp_path.iterdir()) == [path]


def test_planted_fault_a_run_with_another_seed_differs() -> None:
    first, second = (fit(*fresh(), LOADERS["shuffled"](), **OPTIONS, seed=seed) for seed in (0, 1))
    with pytest.raises(AssertionError):
        assert_equal_runs(first, second)


def test_a_finished_run_resumes_to_itself_and_can_be_extended(tmp_path: Path) -> None:
    path, loader = tmp_path / "run", LOADERS["shuffled"]()
    options = OPTIONS | {"schedule": "constant", "kl_warmup": 0.0}
    wanted = fit(*fresh("mean_field"), loader, **options, checkpoint=path)
    assert_equal_runs(fit(*fresh("mean_field"), loader, **options, checkpoint=path, resume=True), wanted)
    longer = options | {"num_steps": STEPS + 3}
    extended = fit(*fresh("mean_field"), loader, **longer, checkpoint=path, resume=True)
    assert_equal_runs(extended, fit(*fresh("mean_field"), loader, **longer))


def test_epochs_are_shuffled_anew_and_the_loader_is_given_back() -> None:
    for name in ("shuffled", "own-generator", "own-sampler", "batch-sampler"):
        loader = LOADERS[name]()
        owners = (loader, loader.sampler, getattr(loader.batch_sampler, "sampler", None))
        own = [g for owner in owners if (g := getattr(owner, "generator", None)) is not None]
        states = [g.get_state() for g in own]
        with torch.random.fork_rng():
            batches = endless_batches(loader, seed=0)
            epochs = [torch.cat([next(batches)["input_ids"].flatten() for _ in range(4)]) for _ in range(3)]
            batches.close()
        assert not torch.equal(epochs[0], epochs[1])
        assert not torch.equal(epochs[1], epochs[2])
        assert all(torch.equal(epochs[0].sort()[0], epoch.sort()[0]) for epoch in epochs)
        assert all(torch.equal(g.get_state(), state) for g, state in zip(own, states, strict=True))


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "learning-rate": (
        {"learning_rate": 0.25},
        f"learning_rate={FitConfig().learning_rate}, and this run has learning_rate=0.25",
    ),
    "seed": ({"seed": 3}, "seed=0, and this run has seed=3"),
    "accumulate": ({"accumulate": 4}, "accumulate=1, and this run has accumulate=4"),
}


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        fit(
            *fresh("mean_field"),
            LOADERS["list"](),
            **OPTIONS,
            checkpoint=tmp_path / "run",
            callbacks=[interrupt_at(2)],
        )
    return tmp_path / "run"


@pytest.mark.parametrize("case", CHANGES)
def test_other_settings_are_refused_by_name(case: str, interrupted: Path) -> None:
    options, message = CHANGES[case]
    before = interrupted.read_bytes()
    with pytest.raises(
        ValueError, match=f"was written with {message}. Give the same settings, or start anew"
    ):
        fit(*fresh("mean_field"), LOADERS["list"](), **OPTIONS | options, checkpoint=interrupted, resume=True)
    assert interrupted.read_bytes() == before


def other_num_data() -> tuple[BayesianLora, Guide]:
    model = BayesianLora(tiny_bert(dropout=0.3), InducingPrior(rows=3, cols=3), num_data=8)
    return model, MeanFieldGuide(model)


def other_prior() -> tuple[BayesianLora, Guide]:
    model = BayesianLora(tiny_bert(dropout=0.3), InducingPrior(rows=3, cols=3, scale=0.9), num_data=7)
    return model, MeanFieldGuide(model)


def other_guide() -> tuple[BayesianLora, Guide]:
    model, _ = fresh()
    return model, MeanFieldGuide(model, scale=0.2)


def other_family() -> tuple[BayesianLora, Guide]:
    model = BayesianLora(tiny_bert(dropout=0.3), GaussianPrior(), num_data=7)
    return model, FlowGuide(model)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_num_data, "num_data=7, and this run has num_data=8"),
        (other_prior, "priors=.*'scale': 0.3.*and this run has priors=.*'scale': 0.9"),
        (other_guide, "guide=.*'scale': 0.05.*'scale': 0.2"),
        (other_family, "priors=.*InducingPrior.*GaussianPrior"),
    ],
)
def test_another_model_or_guide_is_refused_by_name(make: Any, message: str, interrupted: Path) -> None:
    model, guide = make()
    before = {name: value.clone() for name, value in parameters(model, guide).items()}
    with pytest.raises(ValueError, match=message):
        fit(model, guide, LOADERS["list"](), **OPTIONS, checkpoint=interrupted, resume=True)
    assert all(torch.equal(value, before[name]) for name, value in parameters(model, guide).items())


@pytest.mark.parametrize("resume", [True, False], ids=["resumed", "anew"])
def test_a_damaged_or_foreign_checkpoint_is_refused_and_left(resume: bool, interrupted: Path) -> None:
    whole = interrupted.read_bytes()
    write_tensors(interrupted, {"weight": torch.ones(3)}, {"config": {}})
    foreign = interrupted.read_bytes()
    for data in (whole[: len(whole) // 2], b"my thesis", foreign):
        interrupted.write_bytes(data)
        with pytest.raises(
            ValueError, match=r"run is damaged|run is no checkpoint of a fit: choose another file"
        ):
            fit(*fresh("mean_field"), LOADERS["list"](), **OPTIONS, checkpoint=interrupted, resume=resume)
        assert interrupted.read_bytes() == data


def test_a_checkpoint_has_to_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint should be a file, and .* is a folder"):
        fit(*fresh("mean_field"), LOADERS["list"](), **OPTIONS, checkpoint=tmp_path)
    with pytest.raises(ValueError, match="resume needs checkpoint"):
        fit(*fresh("mean_field"), LOADERS["list"](), **OPTIONS, resume=True)


def test_checkpoints_are_written_on_the_way(tmp_path: Path) -> None:
    path, seen = tmp_path / "deep" / "run", []
    note = lambda row: seen.append(len(read_tensors(path)[1]["history"]) if path.exists() else 0)  # noqa: E731
    fit(
        *fresh("mean_field"),
        LOADERS["list"](),
        **OPTIONS,
        checkpoint=path,
        checkpoint_every=4,
        callbacks=[note],
    )
    assert seen == [0, 0, 0, 0, 4, 4]
    assert len(read_tensors(path)[1]["history"]) == STEPS


SCRIPT = """
import sys, time, warnings
warnings.simplefilter("ignore")
from bayeslora_pyro.inference import fit
from tests.test_resume import LOADERS, OPTIONS, fresh

def slowly(row):
    print("step", flush=True)
    time.sleep(0.05)

fit(*fresh(), LOADERS["shuffled"](), **OPTIONS, checkpoint=sys.argv[1], callbacks=[slowly])
"""


def test_a_real_ctrl_c_leaves_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        for _ in range(2):
            assert process.stdout.readline() == "step\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGINT, errors
    assert "KeyboardInterrupt" in errors
    assert 2 <= len(read_tensors(path)[1]["history"]) < STEPS
    resumed = fit(*fresh(), LOADERS["shuffled"](), **OPTIONS, checkpoint=path, resume=True)
    assert_equal_runs(resumed, fit(*fresh(), LOADERS["shuffled"](), **OPTIONS))


def test_ctrl_c_waits_for_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.AdamW.step
    states: list[dict[str, Tensor]] = []
    model, guide = fresh("mean_field")

    def interrupted_step(self: Any, *args: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        step(self, *args)
        states.append({name: value.clone() for name, value in parameters(model, guide).items()})

    monkeypatch.setattr(torch.optim.AdamW, "step", interrupted_step)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        fit(model, guide, LOADERS["list"](), **OPTIONS, checkpoint=tmp_path / "run")
    assert signal.getsignal(signal.SIGINT) is before
    tensors, header = read_tensors(tmp_path / "run")
    assert len(header["history"]) == len(states) == 1
    saved = {name.replace("model.", "m.", 1).replace("guide.", "g.", 1): t for name, t in tensors.items()}
    assert all(torch.equal(saved[name], value) for name, value in states[0].items())


def test_ignored_ctrl_c_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self: (signal.raise_signal(signal.SIGINT), step(self))
    )
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert len(fit(*fresh("mean_field"), LOADERS["list"](), **OPTIONS).history) == STEPS
    finally:
        signal.signal(signal.SIGINT, before)


def test_fit_runs_in_a_thread() -> None:
    results: list[FitResult] = []
    thread = threading.Thread(
        target=lambda: results.append(fit(*fresh("mean_field"), LOADERS["list"](), **OPTIONS))
    )
    thread.start()
    thread.join(300)
    assert_equal_runs(results[0], fit(*fresh("mean_field"), LOADERS["list"](), **OPTIONS))
