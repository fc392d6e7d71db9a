"""On what a cell was made: versions, revision, machine."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from bayeslora_pyro import __version__
from bayeslora_pyro.bench.timing import device_name, processor_name

__all__ = ["setting"]

LIBRARIES = ("torch", "pyro-ppl", "transformers", "peft")


def setting(device: torch.device) -> dict[str, Any]:
    """The versions, the git revision if there is one, the machine and the date."""
    return {
        "versions": {
            "bayeslora-pyro": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in LIBRARIES},
        },
        "revision": _revision(Path(__file__).parent),
        "machine": {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": device_name(device),
        },
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _revision(folder: Path) -> str | None:
    """The revision of the code, with `+` behind where files were changed since; None where it is not from git."""
    try:
        _git(folder, "ls-files", "--error-unmatch", "__init__.py")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
        return _git(folder, "rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
