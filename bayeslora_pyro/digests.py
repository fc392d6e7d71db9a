"""SHA-256 of what is saved, by which a changed file is told from the one that was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["digest_of_file", "digest_of_record", "digest_of_tensors", "signed"]

ENTRY = "sha256"
"""Where a record keeps digests by name of file, its own among them."""


def digest_of_file(path: Path) -> str:
    """The digest of the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_tensors(header: str, tensors: Mapping[str, Tensor]) -> str:
    """The digest of a text and of tensors on the CPU: their names, dtypes, shapes and bytes."""
    digest = hashlib.sha256(header.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest_of_record(record: Mapping[str, Any], name: str) -> str:
    """The digest of a record of JSON values without its own, however it is laid out in the file.

    Args:
        record: The record, with digests under `sha256`.
        name: The name of its own among them.
    """
    others = {key: value for key, value in record[ENTRY].items() if key != name}
    text = json.dumps({**record, ENTRY: others}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def signed(record: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same record with its own digest, as JSON gives it back.

    Args:
        record: The record, with digests under `sha256`.
        name: The name of its own among them.
    """
    plain = json.loads(json.dumps(record))  # tuples become lists before they are counted
    plain[ENTRY][name] = digest_of_record(plain, name)
    return dict(plain)
