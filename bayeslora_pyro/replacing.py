"""Folders that are replaced in one step, whatever cuts the work off; free of torch."""

from __future__ import annotations

import glob
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

__all__ = ["flush", "new_folder", "restore"]


@contextmanager
def new_folder(path: Path, marker: str, *stale: str) -> Iterator[Path]:
    """Yields a temporary folder that takes the place of `path` once it is complete, and vanishes if it never is.

    Files that the old folder has and the new one has not, such as a report, are taken over.

    Args:
        path: The folder to create or replace.
        marker: The name, or a pattern such as `draw-*`, of what makes a folder one that may be replaced. What has such
            a name is not taken over.
        stale: Further patterns of what is not taken over.

    Raises:
        ValueError: If the path is a file, or a folder that holds something else, or the working directory.
    """
    path = path.resolve()
    restore(path)
    if path.exists() and not (path.is_dir() and (not any(path.iterdir()) or any(path.glob(marker)))):
        raise ValueError(f"{path} exists and holds something else: choose a new folder.")
    if path.exists() and Path.cwd().is_relative_to(path):
        raise ValueError(f"{path} is the working directory, or holds it: choose a folder within it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix=_room_prefix(path), dir=path.parent))
    new, old = room / "new", room / "old"
    try:
        new.mkdir()
        yield new
        for written in new.rglob("*"):
            written.chmod(new.stat().st_mode & (0o777 if written.is_dir() else 0o666))
            flush(written)
        if path.exists():
            _take_over(path, new, (marker, *stale))
            path.rename(old)
        _move_in(new, path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(room, ignore_errors=True)


def _take_over(old: Path, new: Path, stale: Sequence[str]) -> None:
    replaced = (*new.iterdir(), *(entry for pattern in stale for entry in old.glob(pattern)))
    kept = {entry.name for entry in old.iterdir()} - {entry.name for entry in replaced}
    for name in sorted(kept):
        if (old / name).is_dir() and not (old / name).is_symlink():
            shutil.copytree(old / name, new / name, symlinks=True)
        else:
            shutil.copy2(old / name, new / name, follow_symlinks=False)


def restore(path: Path) -> None:
    """Finishes the replacement of a folder where a kill has cut it off after the old one was moved aside.

    The new folder was complete by then: it is moved into place, and the old one removed. A folder whose replacement was
    cut off earlier is still the old one.

    Args:
        path: The folder. Nothing happens where there is nothing to finish.
    """
    path = path.resolve()
    for room in path.parent.glob(f"{glob.escape(_room_prefix(path))}*"):
        left = {entry.name for entry in room.iterdir()} if room.is_dir() else set()
        if left == {"old", "new"} and not path.exists():
            _move_in(room / "new", path)
            left = {"old"}
        if left == {"old"} and path.exists():
            shutil.rmtree(room, ignore_errors=True)


def _room_prefix(path: Path) -> str:
    """How the hidden folder begins in which a replacement is made."""
    return f".{path.name}.replacing-"


def _move_in(new: Path, path: Path) -> None:
    try:
        new.rename(path)
    except FileNotFoundError:  # another process was faster to finish the same replacement
        if not path.exists():
            raise


def flush(path: Path) -> None:
    """Has the system put a file on the disk, so that not even a power cut leaves an empty one."""
    if path.is_file():
        with path.open("rb") as written:
            os.fsync(written.fileno())
