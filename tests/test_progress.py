"""Progress of a fit: one line that fits, in a terminal and in a log."""

import io
import re
from typing import Any

import pytest
from rich.console import Console

from bayeslora_pyro.guides import MeanFieldGuide
from bayeslora_pyro.inference import fit
from bayeslora_pyro.models import BayesianLora
from bayeslora_pyro.progress import progress_bar

from .tiny import tiny_batch, tiny_bert

ROW = {"step": 7.0, "elbo": -11.98, "expected_log_likelihood": -0.52, "kl": 11.46, "kl_V": 3.21, "kl_W": 8.25}
TEMPERED = ROW | {"kl_weight": 0.02, "grad_norm": 12.345}


def show(
    width: int, *, terminal: bool, row: dict[str, float] = TEMPERED, steps: int = 100, done: int = 0
) -> list[str]:
    """The lines that a run leaves on a console, without the escapes that move about in them."""
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, _environ={"TERM": "xterm"})
    with progress_bar(steps, done, console=console) as advance:
        for _ in range(steps - done):
            advance(row)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160])
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "log"])
def test_every_line_fits(width: int, terminal: bool) -> None:
    lines = show(width, terminal=terminal)
    assert all(len(line) <= width for line in lines)
    assert re.search(r"100/100 [\d.]+ step/s 0:00  ELBO -11\.98", lines[-1])
    assert len(lines) <= 10 or terminal


@pytest.mark.parametrize(
    ("width", "parts"),
    [
        (70, "ELBO -11.98 = -0.52 − KL 11.46"),
        (80, "ELBO -11.98 = -0.52 − KL V 3.21 − KL W 8.25"),
        (110, "ELBO -11.98 = E[log lik] -0.52 − KL V 3.21 − KL W 8.25 (KL weight 0.02)"),
        (160, "ELBO -11.98 = E[log lik] -0.52 − KL V 3.21 − KL W 8.25 (KL weight 0.02, gradient 12.3)"),
    ],
)
def test_parts_are_named_where_there_is_room(width: int, parts: str) -> None:
    assert show(width, terminal=True)[-1].endswith(parts)


def test_an_elbo_that_is_not_tempered_is_not_called_so() -> None:
    assert "weight" not in show(200, terminal=True, row=ROW | {"kl_weight": 1.0})[-1]


def test_large_numbers_take_no_more_room() -> None:
    row = TEMPERED | {"elbo": -123456.7, "kl_V": 98765.4, "kl": 123456.1, "kl_W": 24690.7}
    assert show(90, terminal=True, row=row)[-1].endswith("ELBO -123457 = -0.52 − KL V 98765 − KL W 24691")


@pytest.mark.parametrize(
    ("steps", "done", "lines"), [(100, 0, 10), (1000, 0, 10), (3, 0, 3), (100, 95, 1), (1, 0, 1)]
)
def test_a_log_gets_a_line_now_and_then(steps: int, done: int, lines: int) -> None:
    shown = show(80, terminal=False, steps=steps, done=done)
    assert len(shown) == lines
    assert shown[-1].startswith(f"{steps}/{steps} ")


def test_nothing_is_shown_unless_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    def run(**options: Any) -> str:
        model = BayesianLora(tiny_bert(), num_data=5)
        fit(model, MeanFieldGuide(model), [tiny_batch()], num_steps=2, **options)
        return capsys.readouterr().out

    assert run(progress=False) == ""
    assert re.search(r"^2/2 .* step/s 0:00  ELBO -.* = -.* − KL V .* − KL W .*$", run(), re.MULTILINE)


def test_an_error_leaves_the_console_usable() -> None:
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(KeyError), progress_bar(3, console=console) as advance:
        advance({})
    with progress_bar(1, console=console) as advance:  # a live display left behind would refuse a second one
        advance(TEMPERED)
