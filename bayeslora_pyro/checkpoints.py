"""Files of tensors with a JSON header, replaced in one step: the checkpoints of a fit."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from bayeslora_pyro.digests import digest_of_tensors
from bayeslora_pyro.replacing import flush

__all__ = [
    "check_modules",
    "load_modules",
    "read_tensors",
    "replace_file",
    "state_of",
    "uninterrupted",
    "write_tensors",
]

SIGNED = "sha256 header"
"""The entry of the metadata of a file that holds the digest and, after a blank, the header."""


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Writes a file under another name and then moves it into place, so that it is never half there.

    Args:
        path: The file to replace or create.
        write: A function that writes to the path it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.touch()
        usual = temporary.stat().st_mode & 0o777
        write(temporary)
        temporary.chmod(usual)  # safetensors lets nobody else read what it writes
        flush(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None) -> None:
    """Writes tensors and a JSON header into one safetensors file, with a digest of both, in one step."""
    values = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(header or {})
    # One entry: of several, safetensors writes any first, and the same content would not be the same file.
    metadata = {SIGNED: f"{digest_of_tensors(text, values)} {text}"}
    replace_file(path, lambda temporary: save_file(values, temporary, metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what :func:`write_tensors` wrote; files of earlier versions have a header alone, and no digest.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            digest, _, text = metadata.get(SIGNED, f" {metadata.get('header', '{}')}").partition(" ")
            header = json.loads(text)
            if not isinstance(header, dict):
                raise ValueError("its header is no JSON object")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata.keys() - {"header"} and digest != digest_of_tensors(text, tensors):
            raise ValueError("it is not what was written")
        return tensors, header
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}). Restore it from a copy, or fit again.") from error


def state_of(**modules: nn.Module) -> dict[str, Tensor]:
    """Collects the state of modules under the given prefixes."""
    return {
        f"{prefix}.{name}": tensor
        for prefix, module in modules.items()
        for name, tensor in module.state_dict().items()
    }


def load_modules(tensors: Mapping[str, Tensor], source: Path, **modules: nn.Module) -> None:
    """Loads what :func:`state_of` collected, all of it or nothing.

    Raises:
        ValueError: If a tensor is missing, left over, or of another shape or dtype.
    """
    check_modules(tensors, source, **modules)
    with torch.no_grad():
        for name, tensor in state_of(**modules).items():
            tensor.copy_(tensors[name])


def check_modules(tensors: Mapping[str, Tensor], source: Path, **modules: nn.Module) -> None:
    """Raises the errors of :func:`load_modules`, and loads nothing."""
    expected = state_of(**modules)
    names = {name for name in tensors if name.partition(".")[0] in modules}
    for name in sorted(names ^ set(expected)):
        raise ValueError(
            f"{source} does not belong to this model and guide: {name!r} is in only one of the two."
        )
    for name, tensor in expected.items():
        if _kind(tensor) != _kind(tensors[name]):
            raise ValueError(
                f"{source} does not belong to this model and guide: {name!r} is {_kind(tensors[name])} there, and "
                f"{_kind(tensor)} here."
            )


def _kind(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Puts off Ctrl-C until the context is left, so that no checkpoint holds half a step."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is None:
        yield  # it cannot arrive here, or is another language's business
        return
    received: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        signal.raise_signal(signal.SIGINT)
