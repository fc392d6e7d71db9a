"""Folders that hold a posterior: for PEFT its mean, for this library all of it."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import nn

from bayeslora_pyro.adapters import fingerprint, load_peft_model, write_folder
from bayeslora_pyro.checkpoints import load_modules, read_tensors, state_of
from bayeslora_pyro.guides import GUIDES, Guide
from bayeslora_pyro.models import LIKELIHOODS, PRIORS, BayesianLora

if TYPE_CHECKING:
    from bayeslora_pyro.posterior import Posterior

__all__ = ["CONFIG", "TENSORS", "load", "new_folder", "save"]

CONFIG = "posterior_config.json"
TENSORS = "posterior.safetensors"
FORMAT = 1


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder that takes the place of `path` once it is complete, and vanishes if it never is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    temporary.chmod(0o755)
    old = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def save(posterior: Posterior, folder: Path) -> None:
    """Writes a posterior; see :meth:`Posterior.save`."""
    if folder.exists() and any(folder.iterdir()) and not (folder / CONFIG).exists():
        raise ValueError(f"{folder} exists and holds something else: choose a new folder.")
    model, guide = posterior.model, posterior.guide
    with new_folder(folder) as target:
        write_folder(model.adapter, posterior.mean_adapter(), model.head_values(), target)
        tensors = {
            name: t.detach().cpu().contiguous().clone()
            for name, t in state_of(model=model, guide=guide).items()
        }
        save_file(tensors, target / TENSORS)
        record = {
            "format": FORMAT,
            "model": _describe_model(model),
            "guide": _describe(guide, GUIDES),
            "base": fingerprint(model.adapter),
            "sha256": {name: _digest(target / name) for name in (TENSORS, "adapter_model.safetensors")},
            "metadata": posterior.metadata,
            "history": posterior.history,
        }
        (target / CONFIG).write_text(json.dumps(record, indent=1), encoding="utf-8")


def _describe_model(model: BayesianLora) -> dict[str, Any]:
    return {
        "priors": {roles: _describe(prior, PRIORS) for roles, prior in model.priors.items()},
        "likelihood": _describe(model.likelihood, LIKELIHOODS),
        "num_data": model.num_data,
        "adapter_name": model.adapter.adapter_name,
        "seed": model.seed,
    }


def _describe(part: Any, table: Mapping[str, type[Any]]) -> dict[str, Any]:
    """A part by its name in a table and its arguments; by no name at all where it is the user's own."""
    name = next((name for name, kind in table.items() if type(part) is kind), None)
    config = part.config()
    if name is not None and all(_is_json(value) for value in config.values()):
        return {"type": name, "config": config}
    return {"type": None, "class": type(part).__qualname__}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def load(
    folder: Path,
    base_model: nn.Module | None,
    *,
    prior: Any = None,
    likelihood: Any = None,
    guide: Callable[[BayesianLora], Guide] | None = None,
) -> tuple[BayesianLora, Guide, dict[str, Any]]:
    """Reads a posterior; see :meth:`Posterior.load`."""
    record = read_record(folder)
    for name, digest in record["sha256"].items():
        if _digest(folder / name) != digest:
            raise ValueError(
                f"{folder / name} is not the file that was saved: restore it from a copy, or fit again."
            )
    tensors, _ = read_tensors(folder / TENSORS)
    own = record["model"]
    priors = (
        {roles: _rebuild("prior", part, PRIORS) for roles, part in own["priors"].items()}
        if prior is None
        else prior
    )
    peft_model = load_peft_model(folder, base_model, own["adapter_name"])
    model = BayesianLora(
        peft_model,
        priors["AB"] if isinstance(priors, dict) and "AB" in priors else priors,
        _rebuild("likelihood", own["likelihood"], LIKELIHOODS) if likelihood is None else likelihood,
        own["num_data"],
        adapter_name=own["adapter_name"],
        seed=own["seed"],
    )
    if fingerprint(model.adapter) != record["base"]:
        raise ValueError(f"base_model is not the one that {folder} was fitted on: its adapted layers differ.")
    fitted = guide(model) if guide else _rebuild("guide", record["guide"], GUIDES, model)
    load_modules(tensors, folder / TENSORS, model=model, guide=fitted)
    return model, fitted, record


def read_record(folder: Path) -> dict[str, Any]:
    """Reads what a folder says of itself.

    Raises:
        FileNotFoundError: If it holds no posterior.
        ValueError: If that is damaged, or of a later format.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no posterior: it has no {CONFIG}.")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known, parts = (
            record["format"],
            [record[name] for name in ("model", "guide", "base", "sha256", "history")],
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): restore it from a copy, or fit again.") from error
    if known != FORMAT or not all(parts[:4]):
        raise ValueError(
            f"{path} has format {known}, and this version reads {FORMAT}: update bayeslora-pyro."
        )
    return record


def _rebuild(argument: str, part: Mapping[str, Any], table: Mapping[str, type[Any]], *args: Any) -> Any:
    """Makes a part again from its name and arguments; nothing but the names of a table can be made."""
    if part.get("type") not in table:
        raise ValueError(
            f"The {argument} of this posterior is {part.get('class', part.get('type'))!r}, and not one of the "
            f"library's: give it to load as {argument}=…."
        )
    return table[part["type"]](*args, **part["config"])


def _digest(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: restore it from a copy, or fit again.")
    return hashlib.sha256(path.read_bytes()).hexdigest()
