"""Imports go down only, and a few libraries are met in one place each."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

IMPORTERS = {
    "peft": {"adapters", "tasks"},
    "transformers": {"adapters", "tasks", "training"},
    "arviz": {"diagnostics"},
    "arviz_base": {"diagnostics"},
    "arviz_plots": {"diagnostics"},
    "arviz_stats": {"diagnostics"},
}
"""Which parts of the package may import a library."""

DIRECT_IMPORTERS = """
import sys
sys.path.insert(0, "")
import grimp
graph = grimp.build_graph("bayeslora_pyro", include_external_packages=True, cache_dir=None)
for library in sys.argv[1:]:
    for module in graph.find_modules_that_directly_import(library) if library in graph.modules else ():
        print(library, *module.split(".")[1:2])
"""


def lint(root: Path) -> subprocess.CompletedProcess[str]:
    """Checks the contracts of pyproject.toml on the package that stands in a folder."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


def strangers(root: Path) -> list[tuple[str, str]]:
    """The libraries of the table that a part of the package imports without being in it."""
    command = [sys.executable, "-c", DIRECT_IMPORTERS, *IMPORTERS]
    output = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    rows = (line.partition(" ")[::2] for line in output.splitlines())
    return sorted((library, part) for library, part in rows if part not in IMPORTERS[library])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package to plant faults in."""
    for name in ("bayeslora_pyro", "guides", "models"):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_go_down_only() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "fault", "complaint"),
    [
        (
            "guides/planted.py",
            "import bayeslora_pyro.models",
            "bayeslora_pyro.guides is not allowed to import",
        ),
        (
            "models/planted.py",
            "from bayeslora_pyro import guides",
            "bayeslora_pyro.models is not allowed to import",
        ),
        (
            "bayeslora_pyro/types.py",
            "import bayeslora_pyro.models",
            "bayeslora_pyro.types is not allowed to import",
        ),
        ("bayeslora_pyro/utils.py", "", "utils"),
    ],
    ids=["guide-to-model", "model-to-guide", "upwards", "module-without-a-layer"],
)
def test_planted_import_is_caught(file: str, fault: str, complaint: str, tree: Path) -> None:
    with (tree / file).open("a", encoding="utf-8") as stream:
        stream.write(f"\n{fault}\n")
    done = lint(tree)
    assert done.returncode == 1
    assert complaint in " ".join(done.stdout.split())


def test_libraries_are_met_in_their_place() -> None:
    assert strangers(ROOT) == []


@pytest.mark.parametrize("library", IMPORTERS)
def test_planted_library_is_caught(library: str, tree: Path) -> None:
    (tree / "models" / "planted.py").write_text(
        f"def late():\n    from {library} import anything\n", encoding="utf-8"
    )
    assert strangers(tree) == [(library, "models")]
