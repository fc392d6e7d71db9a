"""What a command says when it cannot go on: one line that names the argument, the value and the cure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["CommandError", "blame", "one_line"]


class CommandError(Exception):
    """A failure whose message is for the user as it stands."""


def one_line(error: BaseException) -> str:
    """Puts the message of an error into one line."""
    return " ".join(str(error).split()) or type(error).__name__


@contextmanager
def blame(argument: str, value: Any = None, *, everything: bool = False) -> Iterator[None]:
    """Puts an argument and its value in front of what the library says of them.

    Args:
        argument: The argument, such as `--model`.
        value: Its value; None where the message has it already.
        everything: Whether to blame it for errors of any kind, such as those of a file that another library reads.
    """
    try:
        yield
    except CommandError:
        raise
    except Exception as error:
        if not (everything or isinstance(error, ValueError | TypeError | OSError | ImportError)):
            raise
        named = argument if value is None else f"{argument} {value}"
        raise CommandError(f"{named}: {one_line(error)}") from error
