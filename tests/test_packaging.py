"""What is shipped: models/ and guides/ inside the package, every folder listed, nothing in the user's way."""

import email.parser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import bayeslora_pyro

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LINKED = ("guides", "models")

IMPORTS = """
import importlib.util
import bayeslora_pyro.guides, bayeslora_pyro.models
print(bayeslora_pyro.__file__, bayeslora_pyro.guides.__file__, bayeslora_pyro.models.__file__)
print([name for name in ("guides", "models", "tests") if importlib.util.find_spec(name)])
"""

CLIENT = """\
from bayeslora_pyro import __version__, guides, models

version: str = __version__
names: tuple[str, str] = (guides.__name__, models.__name__)
number: int = __version__
import models as top_level
"""


def source_files(root: Path) -> set[str]:
    """The files of the package by their place in a wheel; the links are left to the folders they name."""
    files: set[str] = set()
    for top, inside in (("bayeslora_pyro", ""), *((name, "bayeslora_pyro/") for name in LINKED)):
        for folder, subfolders, names in os.walk(root / top):
            subfolders[:] = [name for name in subfolders if name != "__pycache__"]
            files |= {inside + Path(folder, name).relative_to(root).as_posix() for name in names}
    return files


def packages_of(files: set[str]) -> set[str]:
    """The packages that hold these files, by their import names."""
    return {name.rpartition("/")[0].replace("/", ".") for name in files if name.endswith(".py")}


def run(*arguments: str | Path, cwd: Path, returncode: int = 0) -> str:
    """Runs a command without the caller's PYTHONPATH and gives back what it printed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [str(argument) for argument in arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == returncode, done.stdout + done.stderr
    return done.stdout


def build(kind: str, checkout: Path) -> Path:
    """Builds a wheel, an editable wheel or an sdist with this environment's setuptools: no network."""
    target = checkout / f"dist-{kind}"
    code = f"from setuptools import build_meta; build_meta.build_{kind}({target.name!r})"
    run(sys.executable, "-c", code, cwd=checkout)
    (built,) = target.iterdir()
    return built


def wheel_files(wheel: Path) -> set[str]:
    """The files of a wheel but for its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def unpack(wheel: Path, target: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def import_outside(setup: str, cwd: Path) -> list[str]:
    """Imports the package in a fresh interpreter that has the dependencies but no installed copy of ours."""
    dependencies = sysconfig.get_path("purelib")
    code = f"import site, sys; {setup}; sys.path.append({dependencies!r}){IMPORTS}"
    return run(sys.executable, "-I", "-S", "-c", code, cwd=cwd).splitlines()


def pins(name: str) -> dict[str, set[Version]]:
    """The versions that a constraints file pins, by distribution."""
    versions: dict[str, set[Version]] = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            versions.setdefault(requirement.name, set()).add(Version(specifier.version))
    return versions


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, beside folders that must not be shipped.

    A copy also because a build leaves build/ behind, whose files the next wheel would ship even when deleted.
    """
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    for name in ("bayeslora_pyro", *LINKED):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests/test_nothing.py", "examples/demo.py", "benchmarks/draws.py"):
        (copy / name).parent.mkdir()
        (copy / name).touch()
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    return build("wheel", checkout)


@pytest.fixture(scope="module")
def user_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("user")
    venv.create(folder, with_pip=False)
    scheme = "nt_venv" if os.name == "nt" else "posix_venv"
    paths = sysconfig.get_paths(scheme, vars={"base": str(folder), "platbase": str(folder)})
    unpack(wheel, Path(paths["purelib"]))
    return Path(paths["scripts"]) / "python"


def test_every_package_is_listed() -> None:
    listed = PROJECT["tool"]["setuptools"]["packages"]
    assert sorted(packages_of(source_files(ROOT))) == sorted(listed), "mend packages in pyproject.toml"


@pytest.mark.parametrize("folder", ["bayeslora_pyro/extra", "models/extra", "guides/extra/deep"])
def test_unlisted_package_is_noticed(folder: str, tmp_path: Path) -> None:
    for name in ("bayeslora_pyro", *LINKED, folder):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / name / "__init__.py").touch()
    found = packages_of(source_files(tmp_path)) - {"bayeslora_pyro", *(f"bayeslora_pyro.{n}" for n in LINKED)}
    assert found == {("" if folder.startswith("bayes") else "bayeslora_pyro.") + folder.replace("/", ".")}


def test_every_package_has_an_init() -> None:
    files = source_files(ROOT)
    assert all(f"{package.replace('.', '/')}/__init__.py" in files for package in packages_of(files))


@pytest.mark.parametrize("name", LINKED)
def test_link_is_committed_as_a_link(name: str) -> None:
    link = ROOT / "bayeslora_pyro" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert run("git", "ls-files", "--stage", f"bayeslora_pyro/{name}", cwd=ROOT).startswith("120000 ")


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    files = wheel_files(wheel)
    assert files == source_files(ROOT)
    assert {"bayeslora_pyro/py.typed", "bayeslora_pyro/models/__init__.py"} <= files
    assert {name.split("/")[0] for name in files} == {"bayeslora_pyro"}


def test_sdist_builds_the_same_wheel(checkout: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", checkout)) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.iterdir()
    assert wheel_files(build("wheel", unpacked)) == wheel_files(wheel)


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = email.parser.Parser().parsestr(archive.read(metadata).decode())
        licence = archive.read(metadata.replace("METADATA", "licenses/LICENSE"))
    assert fields["Name"] == "bayeslora-pyro"
    assert fields["License-Expression"] == "Apache-2.0"
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert fields["Version"] == bayeslora_pyro.__version__


def test_citation_names_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.*)$", citation, re.MULTILINE) == [bayeslora_pyro.__version__]


def test_wheel_imports_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    site = unpack(wheel, tmp_path / "site")
    files, top_level = import_outside(f"sys.path.insert(0, {str(site)!r})", tmp_path)
    assert all(Path(file).is_relative_to(site) for file in files.split())
    assert top_level == "[]"


def test_editable_install_imports_outside_the_repository(checkout: Path, tmp_path: Path) -> None:
    site = unpack(build("editable", checkout), tmp_path / "site")
    files, top_level = import_outside(f"site.addsitedir({str(site)!r})", tmp_path)
    assert all(Path(file).is_relative_to(checkout) for file in files.split())
    assert top_level == "[]"


@pytest.mark.parametrize(
    ("checker", "complaint"),
    [
        (["mypy", "--strict", "--cache-dir=cache", "--python-executable"], r"^client\.py:(\d+): error:"),
        (["pyright", "--pythonpath"], r"client\.py:(\d+):\d+ - error:"),
    ],
    ids=["mypy", "pyright"],
)
def test_type_checkers_read_the_wheel(
    checker: list[str], complaint: str, user_python: Path, tmp_path: Path
) -> None:
    (tmp_path / "client.py").write_text(CLIENT, encoding="utf-8")
    output = run(sys.executable, "-m", *checker, user_python, "client.py", cwd=tmp_path, returncode=1)
    lines = CLIENT.splitlines()
    assert [lines[int(number) - 1] for number in re.findall(complaint, output, re.MULTILINE)] == lines[-2:]


@pytest.mark.parametrize("requirement", PROJECT["project"]["dependencies"])
def test_dependency_is_pinned_at_its_floor_and_in_the_tested_set(requirement: str) -> None:
    needed = Requirement(requirement)
    (floor,) = (Version(part.version) for part in needed.specifier if part.operator == ">=")
    (lowest,) = pins("constraints-floor.txt")[needed.name]
    assert lowest == floor
    assert all(needed.specifier.contains(version) for version in pins("constraints.txt")[needed.name])
