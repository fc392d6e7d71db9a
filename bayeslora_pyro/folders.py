"""Folders that hold a posterior: for PEFT its mean, for this library all of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from torch import nn

from bayeslora_pyro.adapters import (
    PEFT_CONFIG,
    PEFT_TENSORS,
    describe_base,
    load_peft_model,
    unchanged_on_failure,
    write_folder,
)
from bayeslora_pyro.checkpoints import load_modules, read_tensors, state_of, write_tensors
from bayeslora_pyro.digests import digest_of_file, digest_of_record, signed
from bayeslora_pyro.guides import Guide
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.parts import build_guide, build_model, describe_guide, describe_model
from bayeslora_pyro.replacing import new_folder, restore

if TYPE_CHECKING:
    from bayeslora_pyro.posterior import Posterior

__all__ = ["CONFIG", "TENSORS", "load", "peft_record", "read_record", "save", "save_draws"]

CONFIG = "posterior_config.json"
TENSORS = "posterior.safetensors"
FORMAT = 3
"""Format 2 had no temperature, format 1 no digests of the record itself and of PEFT's configuration; both are read."""

RECORD: dict[str, Any] = {
    "format": int,
    "model": {"priors": dict, "likelihood": dict, "num_data": int, "adapter_name": str, "seed": int},
    "guide": dict,
    "base": {"layers": dict, "settings": dict},
    "sha256": {TENSORS: str, PEFT_TENSORS: str, PEFT_CONFIG: str, CONFIG: str},
    "metadata": dict,
    "history": [dict],
}
"""What `posterior_config.json` holds: a type or several, the types of the entries of a list, or those of an object."""

FORMATS = {
    1: RECORD | {"sha256": {TENSORS: str, PEFT_TENSORS: str}},
    2: RECORD,
    FORMAT: RECORD | {"temperature": (float, NoneType)},
}
"""What each format holds."""


def save(posterior: Posterior, folder: Path) -> None:
    """Writes a posterior; see :meth:`Posterior.save`."""
    model, guide = posterior.model, posterior.guide
    with new_folder(folder, CONFIG) as target:
        write_folder(model.adapter, posterior.mean_adapter(), model.head_values(), target)
        write_tensors(target / TENSORS, state_of(model=model, guide=guide))
        record = {
            "format": FORMAT,
            "model": describe_model(model),
            "guide": describe_guide(guide),
            "base": describe_base(model.adapter),
            "sha256": {name: digest_of_file(target / name) for name in RECORD["sha256"] if name != CONFIG},
            "temperature": posterior.temperature,
            "metadata": posterior.metadata,
            "history": posterior.history,
        }
        (target / CONFIG).write_text(json.dumps(signed(record, CONFIG), indent=1), encoding="utf-8")


def save_draws(members: Sequence[Posterior], folder: Path, share: int, seed: int) -> list[Path]:
    """Writes draws of one posterior after another as ordinary PEFT folders; see :meth:`Posterior.draws`."""
    if any(posterior.depends_on_items for posterior in members):
        raise ValueError(
            "draws needs factors that are the same for all items, and the noise of this posterior depends on the item: "
            "predict with the posterior itself, or take the LoRA without noise, which save writes."
        )
    names = []
    with new_folder(folder, "draw-*") as target:
        for (k, posterior), index in product(enumerate(members), range(share)):
            names.append(f"draw-{k * share + index:03d}")
            (target / names[-1]).mkdir()
            weights = posterior.weights(1, seed + k, first=index)
            one = {stack: weight[0] for stack, weight in weights.items()}
            model = posterior.model
            write_folder(model.adapter, one, model.head_values(), target / names[-1])
    return [folder / name for name in names]


def load(
    folder: Path,
    base_model: nn.Module | None,
    *,
    prior: Any = None,
    likelihood: Any = None,
    guide: Callable[[BayesianLora], Guide] | None = None,
    peft_model: nn.Module | None = None,
) -> tuple[BayesianLora, Guide, dict[str, Any]]:
    """Reads a posterior; see :meth:`Posterior.load`.

    Args:
        folder: The folder.
        base_model: The base model; by default the one that the folder names.
        prior: The prior, where it is not one of the library's.
        likelihood: The likelihood, where it is not one of the library's.
        guide: A function from the model to the guide, where it is not one of the library's.
        peft_model: The PEFT model, where there is one already, of another posterior whose :func:`peft_record` is equal.
    """
    record = read_record(folder)
    tensors, _ = read_tensors(folder / TENSORS)
    own = record["model"]
    _check_sizes(folder, record, sum(tensor.numel() for tensor in tensors.values()))
    try:
        with unchanged_on_failure(base_model):
            if peft_model is None:
                peft_model = load_peft_model(folder, base_model, own["adapter_name"], record["base"])
            model = build_model(peft_model, own, prior, likelihood)
            fitted = build_guide(model, record["guide"], guide)
            load_modules(tensors, folder / TENSORS, model=model, guide=fitted)
    except (ValueError, OSError):
        raise
    except Exception as error:  # a forged record may break anything that is made from it
        raise ValueError(f"{folder} is damaged, or does not fit what it is loaded with: {error}.") from error
    return model, fitted, record


def peft_record(folder: Path) -> tuple[Any, ...]:
    """What a folder says of its base model and its LoRA: where it is equal, posteriors may share a PEFT model."""
    record = read_record(folder)
    config = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
    lists = {
        name: sorted(value, key=str) for name, value in config.items() if isinstance(value, list)
    }  # PEFT's are sets
    return record["base"], record["model"]["adapter_name"], config | lists


def read_record(folder: Path) -> dict[str, Any]:
    """Reads what a folder says of itself, and checks that its files are those that were saved.

    Raises:
        FileNotFoundError: If it holds no posterior, or one of its files is missing.
        ValueError: If it is damaged, or of a later format.
    """
    restore(folder)
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no posterior: it has no {CONFIG}.")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it from a copy, or fit again.") from error
    known = record.get("format") if isinstance(record, dict) else None
    if isinstance(known, int) and known > FORMAT:
        raise ValueError(
            f"{path} has format {known}, and this version reads {FORMAT}: update bayeslora-pyro."
        )
    expected = FORMATS.get(known) if type(known) is int else None
    if wrong := "format" if expected is None else _first_wrong(record, expected):
        raise ValueError(f"{path} is damaged (at {wrong!r}): restore it from a copy, or fit again.")
    _check_files(folder, record)
    return record


def _first_wrong(record: dict[str, Any], expected: dict[str, Any]) -> str | None:
    """Names the first entry that is missing or of another type."""
    for name, kind in expected.items():
        outer = kind if isinstance(kind, type | tuple) else type(kind)
        if name not in record or type(record[name]) not in (outer if isinstance(outer, tuple) else (outer,)):
            return name
        if isinstance(kind, dict) and (wrong := _first_wrong(record[name], kind)):
            return f"{name}.{wrong}"
        if isinstance(kind, list) and any(type(entry) is not kind[0] for entry in record[name]):
            return name
    return None


def _check_sizes(folder: Path, record: dict[str, Any], stored: int) -> None:
    """Refuses parts that would be larger than all that is stored of them, before they take the memory."""
    own = record["model"]
    for part in (*own["priors"].values(), own["likelihood"], record["guide"]):
        config = part.get("config") if isinstance(part, dict) else None
        for name, value in (config if isinstance(config, dict) else {}).items():
            if isinstance(value, int) and name != "seed" and value > stored:
                raise ValueError(
                    f"{folder / CONFIG} asks for {name}={value}, and {TENSORS} holds {stored} numbers in all: restore "
                    "it from a copy, or fit again."
                )


def _check_files(folder: Path, record: dict[str, Any]) -> None:
    digests = {name: digest for name, digest in record["sha256"].items() if name in RECORD["sha256"]}
    for name in (PEFT_CONFIG, *digests):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing: restore it from a copy, or fit again.")
    for name, digest in digests.items():
        found = digest_of_record(record, CONFIG) if name == CONFIG else digest_of_file(folder / name)
        if found != digest:
            raise ValueError(
                f"{folder / name} is not the file that was saved: restore it from a copy, or fit again."
            )
