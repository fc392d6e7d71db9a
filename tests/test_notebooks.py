"""The notebooks run from top to bottom without a warning, and are committed as they ran."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = (
    "swap_the_prior",
    "swap_the_flow",
    "from_svi_to_arviz",
    "predictive_sampling",
    "write_your_own",
)
SMALL = {"BAYESLORA_STEPS": "3", "BAYESLORA_ITEMS": "20"}
LARGEST = 60_000
"""The size of a picture, in bytes."""

FRESH = """
%reset -f
import logging, warnings
logging.getLogger("bitsandbytes").setLevel("ERROR")  # which says on its import what it lacks on a processor
warnings.filterwarnings("ignore", "IProgress")  # tqdm would like ipywidgets
import pyro, torch
warnings.resetwarnings()
warnings.simplefilter("error")
pyro.clear_param_store()
pyro.settings.set(module_local_params=False)
torch.manual_seed(0)
"""
"""What a notebook starts from: the names and the settings of a kernel just started, but warnings are errors."""


def read(name: str) -> nbformat.NotebookNode:
    return nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def run(notebook: nbformat.NotebookNode, kernel: KernelManager) -> None:
    client = NotebookClient(notebook, km=kernel, timeout=300)
    try:
        client.execute()
    finally:
        if client.kc is not None:  # a cell that fails ends the kernel, and the next notebook starts another
            client.kc.stop_channels()


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One kernel for all notebooks: to import torch takes longer than to run them."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in SMALL.items():
            environment.setenv(name, value)
        environment.delenv("MPLBACKEND", raising=False)  # pictures go into the notebook
        environment.setenv("PYTHONPATH", str(EXAMPLES.parent))
        environment.chdir(EXAMPLES)
        manager = KernelManager(kernel_name="python3")
        manager.start_kernel()
        yield manager
        manager.shutdown_kernel(now=True)


def test_the_table_names_them_all():
    assert sorted(NAMES) == sorted(path.stem for path in EXAMPLES.glob("*.ipynb"))
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    assert all(f"(examples/{name}.ipynb)" in readme for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_committed_as_it_ran(name):
    notebook = read(name)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert {"display_data", "stream"} <= {output.output_type for output in outputs(notebook)}
    assert_clean(notebook)


@pytest.mark.parametrize("name", NAMES)
def test_its_pictures_are_small_and_its_links_lead_somewhere(name):
    notebook = read(name)
    pictures = [
        output.data["image/png"] for output in outputs(notebook) if "image/png" in output.get("data", {})
    ]
    assert pictures
    assert max(len(base64.b64decode(picture)) for picture in pictures) <= LARGEST
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert target.startswith("https://") or (EXAMPLES / target).exists(), target


@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, kernel):
    notebook = read(name)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FRESH))
    run(notebook, kernel)
    assert_clean(notebook)


def assert_clean(notebook: nbformat.NotebookNode) -> None:
    """No errors, no warnings, and no word of the machine that it ran on."""
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        shown = str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", ""))
        assert not re.search(r"/(home|root|tmp|work|Users)/", shown), shown


@pytest.mark.parametrize("fault", ["raise ValueError", "import warnings; warnings.warn('no')"])
def test_a_fault_would_be_caught(fault, kernel):
    cells = [nbformat.v4.new_code_cell(source) for source in (FRESH, fault)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    with pytest.raises(CellExecutionError, match=r"ValueError|UserWarning"):
        run(notebook, kernel)
