"""Saves that are killed at random moments, and what is found there afterwards."""

import copy
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

from bayeslora_pyro.checkpoints import read_tensors, state_of, write_tensors
from bayeslora_pyro.guides import MeanFieldGuide
from bayeslora_pyro.models import BayesianLora, InducingPrior
from bayeslora_pyro.posterior import Posterior

from .test_folders import bare
from .test_posterior import perturbed
from .tiny import tiny_bert

State = dict[str, torch.Tensor]


def killed(saves: list[Callable[[], None]], delay: float) -> None:
    """Repeats some saves in turn in a process of their own, which is killed after a delay in seconds."""
    child = os.fork()
    if child == 0:
        try:
            while True:
                for save in saves:
                    save()
        finally:
            os._exit(1)  # a save failed; nobody else ends this process
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    if not os.WIFSIGNALED(os.waitpid(child, 0)[1]):
        raise RuntimeError("A save failed before the kill.")


def found(load: Callable[[], State], known: list[State]) -> str:
    """Loads what a kill has left: one of what was saved, nothing, or half of something."""
    try:
        state = load()
    except (ValueError, FileNotFoundError) as error:
        return "refused" if str(error) else "fault: no message"
    except Exception as error:
        return f"fault: {type(error).__name__}: {error}"
    same = [
        one.keys() == state.keys() and all(torch.equal(v, state[n]) for n, v in one.items()) for one in known
    ]
    return "whole" if any(same) else "fault: half read"


def kill_posteriors(place: Path, count: int, seed: int = 0) -> Counter[str]:
    """Kills saves of posteriors, every other time of one that is there already."""
    model = BayesianLora(tiny_bert(), InducingPrior(rows=3, cols=3), num_data=20)
    posteriors = [Posterior(model, perturbed(MeanFieldGuide(model), seed=k)) for k in range(2)]
    known = [state_of(model=each.model, guide=each.guide) for each in posteriors]
    folder, base, source = place / "posterior", bare(), random.Random(seed)
    saves = [lambda each=each: each.save(folder) for each in posteriors]

    def load() -> State:
        loaded = Posterior.load(folder, copy.deepcopy(base))
        return state_of(model=loaded.model, guide=loaded.guide)

    return _repeat(saves, load, known, place, count, source)


def kill_checkpoints(place: Path, count: int, seed: int = 0) -> Counter[str]:
    """Kills writes of checkpoints, every other time of one that is there already."""
    known = [{"a": torch.full((20_000,), float(k)), "b": torch.tensor(k)} for k in range(2)]
    path = place / "checkpoint.safetensors"
    saves = [lambda state=state: write_tensors(path, state, {"history": [1] * 1000}) for state in known]
    return _repeat(saves, lambda: read_tensors(path)[0], known, place, count, random.Random(seed))


def _repeat(
    saves: list[Callable[[], None]],
    load: Callable[[], State],
    known: list[State],
    place: Path,
    count: int,
    source: random.Random,
) -> Counter[str]:
    for save in saves:
        save()  # the first of all is slow
    start = time.monotonic()
    for save in saves:
        save()
    duration = time.monotonic() - start
    results: Counter[str] = Counter()
    for trial in range(count):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        if trial % 2:
            saves[0]()
        killed(saves, source.uniform(0, 1.5 * duration))
        result = found(load, known)
        if trial % 2 and result == "refused":
            result = "fault: the old one is lost"
        results[result] += 1
    return results


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, number = Path(sys.argv[1]), int(sys.argv[2])
    for kill in (kill_posteriors, kill_checkpoints):
        sys.stdout.write(f"{kill.__name__} {dict(kill(where / kill.__name__, number))}\n")
