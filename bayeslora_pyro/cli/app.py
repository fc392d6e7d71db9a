"""The entry point: reads the command line, runs the command, and turns a failure into one line."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bayeslora_pyro.cli.errors import CommandError, one_line
from bayeslora_pyro.cli.parsing import parse
from bayeslora_pyro.cli.plans import make_plan
from bayeslora_pyro.cli.terminal import complain, only_first_speaks, quiet_libraries

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: The command line without the name of the program; by default that of the process.

    Returns:
        The exit code: 0 if all went well, 1 if the work failed, 2 if it was asked for wrongly, 130 after Ctrl-C.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments or bool(os.environ.get("BAYESLORA_DEBUG"))
    try:
        call = parse(arguments)
        plan = make_plan(call)
        # Only now: torch, Pyro and transformers take seconds to import.
        with quiet_libraries(debug), only_first_speaks(), _joined(call.command):
            command = importlib.import_module(f"bayeslora_pyro.cli.{call.command.replace(' ', '_')}")
            command.run(plan)
    except SystemExit as end:  # argparse has shown its help
        return int(end.code or 0)
    except KeyboardInterrupt as interrupt:
        complain(str(interrupt) or "interrupted")
        return 130
    except Exception as error:
        if debug:
            traceback.print_exc()
        return _report(error)
    return 0


@contextmanager
def _joined(command: str) -> Iterator[None]:
    """Joins the processes that a launcher has started."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    if command != "fit":
        raise CommandError(f"{command} runs in one process: call it without a launcher")
    with importlib.import_module("bayeslora_pyro.ranks").joined():
        yield


def _report(error: Exception) -> int:
    if isinstance(error, CommandError):
        complain(str(error))
        return 2
    if isinstance(error, FloatingPointError | OSError):
        complain(one_line(error))
        return 1
    complain(f"{type(error).__name__}: {one_line(error)} (run again with --debug to see where)")
    return 1
