"""The user's cache folder: where it is, what is intact in it, and how a folder is put there whole."""

from __future__ import annotations

__all__ = ["cache_folder", "is_intact", "publish", "sha256_of"]

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory


def cache_folder() -> Path:
    """Return ``$BAYESLORA_CACHE``, else ``$XDG_CACHE_HOME/bayeslora``, else ``~/.cache/bayeslora``."""
    if chosen := os.environ.get("BAYESLORA_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "bayeslora"


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_intact(folder: Path, digests: Mapping[str, str]) -> bool:
    """Say whether a folder holds every named file with its sha256."""
    paths = [folder / name for name in digests]
    return all(path.is_file() for path in paths) and [sha256_of(path) for path in paths] == [
        *digests.values()
    ]


def publish(folder: Path, build: Callable[[Path], None], intact: Callable[[Path], bool]) -> None:
    """Build a folder under a temporary name and rename it into place, so that no reader meets half of it.

    Args:
        folder: The final place. What stands there already is kept if intact (another process was faster) and
            replaced if not.
        build: Fills the empty folder it is given.
        intact: Says whether a folder is whole.

    Raises:
        OSError: If the folder cannot be put into place.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        staging = Path(scratch, "new")
        staging.mkdir()
        build(staging)
        if not intact(staging):
            raise OSError(f"{staging} was written but does not read back as written: is the disk full?")
        if folder.exists() and not intact(folder):
            with contextlib.suppress(FileNotFoundError):  # another process may move it aside first
                folder.rename(Path(scratch, "damaged"))
        try:
            staging.rename(folder)
        except OSError:
            if not intact(folder):
                raise
