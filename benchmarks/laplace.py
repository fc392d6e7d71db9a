"""The curvature pass of a Laplace approximation against a training epoch of plain PEFT, and against laplace-torch."""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import sys
import warnings
from collections import UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import CASES, Case
from timing import WARM_UP, Row, Timer, main, ratios
from torch import nn
from train_step import plain_step

from bayeslora_pyro import BayesianLora, Classification, laplace_posterior

BARS = {"minilm": 2.5, "smollm2": 2.5}
NUM_BATCHES = 8


class Logits(nn.Module):
    """A PEFT classifier as laplace-torch wants it."""

    def __init__(self, peft_model: nn.Module) -> None:
        super().__init__()
        self.peft_model = peft_model

    def forward(self, batch: Any) -> torch.Tensor:
        return self.peft_model(**{name: batch[name] for name in ("input_ids", "attention_mask")}).logits


def our_pass(case: Case) -> Callable[[], Any]:
    """Our Laplace approximation: the pass, the eigenvectors and the evidence; the start of B as if trained."""
    items = case.likelihood.num_items(case.batch)
    model = BayesianLora(case.peft_model, "point", case.likelihood, NUM_BATCHES * items)
    return lambda: laplace_posterior(model, [case.batch] * NUM_BATCHES, precision=1.0)


def their_pass(case: Case) -> Callable[[], Any]:
    """The same by laplace-torch: Kronecker factors by curvlinops, and their eigenvectors."""
    laplace = laplace_torch()
    base_model: Any = case.peft_model.get_base_model()
    base_model.set_attn_implementation("eager")  # the derivatives that curvlinops takes have no other
    for name, parameter in case.peft_model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    loader: Any = torch.utils.data.DataLoader(_Rows(case.batch), batch_size=None)

    def go() -> None:
        found = laplace.Laplace(
            Logits(case.peft_model),
            "classification",
            subset_of_weights="all",
            hessian_structure="kron",
            backend=laplace.curvature.CurvlinopsGGN,
            dict_key_x="input_ids",
            dict_key_y="labels",
        )
        found.fit(loader)

    return go


def laplace_torch() -> Any:
    """The package of laplace-torch, which has the name of this script."""
    here, before = Path(__file__).resolve().parent, sys.path
    sys.path = [path for path in before if Path(path).resolve() != here]
    try:
        return importlib.import_module("laplace")
    finally:
        sys.path = before


class _Rows(torch.utils.data.Dataset[Any]):
    def __init__(self, batch: Any) -> None:
        self.batch = UserDict(batch)

    def __len__(self) -> int:
        return NUM_BATCHES

    def __getitem__(self, index: int) -> Any:
        return self.batch


def _trained(case: Case) -> Case:
    """Gives B values: a B of zero has no curvature of A."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in case.peft_model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))
    return case


def measure(case: Case, options: argparse.Namespace) -> Row:
    """Our pass and an epoch of plain training take turns; then, of classifiers, our pass and that of laplace-torch."""
    ours, step, timer = our_pass(_trained(case)), plain_step(case), Timer(options.device, options.clock)
    pairs = []
    for _ in range(WARM_UP + options.repeats):
        pairs.append((timer.time(ours), timer.time(lambda: [step() for _ in range(NUM_BATCHES)])))
        _trained(case)
    row = ratios(*zip(*pairs[WARM_UP:], strict=True))
    if isinstance(case.likelihood, Classification):
        row["laplace_torch"] = against_laplace_torch(case, options, timer)
    return row


def against_laplace_torch(case: Case, options: argparse.Namespace, timer: Timer) -> Row:
    """The ratio of times, ours by theirs, and the peak of memory of each in a process of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ours, theirs = our_pass(_trained(case)), their_pass(case)
        pairs = [(timer.time(ours), timer.time(theirs)) for _ in range(1 + options.repeats)]
    row = ratios(*zip(*pairs[1:], strict=True))
    found = {"ratio": row["ratio"], "ours_ms": row["ours_ms"], "theirs_ms": row["plain_ms"]}
    if "minilm" in options.model and torch.device(options.device).type == "cpu":
        found["peak_mib"] = {side: peak_of("minilm", side) for side in ("ours", "theirs")}
    return found


def peak_of(name: str, side: str) -> float:
    """By how many MiB a pass raises the peak of memory of a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak, (name, side))


def _peak(name: str, side: str) -> float:
    case = _trained(CASES[name]("cpu"))
    with torch.no_grad():
        case.plain_forward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        go = our_pass(case) if side == "ours" else their_pass(case)
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        go()
    return round((memory("VmHWM") - before) / 1024, 1)


def memory(name: str) -> int:
    """What Linux says of the memory of this process, in KiB: `VmRSS` now, `VmHWM` at its peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main("Laplace: a curvature pass / an epoch of plain PEFT LoRA", measure, BARS, repeats=5)
