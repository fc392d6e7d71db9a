"""From a command line to a command and its options."""

from __future__ import annotations

import argparse
import difflib
import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from bayeslora_pyro import __version__
from bayeslora_pyro.cli.commands import COMMANDS, Command
from bayeslora_pyro.cli.errors import CommandError, one_line
from bayeslora_pyro.cli.options import Option

__all__ = ["Call", "parse", "with_values"]

MAX_LEVELS = 2
"""The levels of names that a configuration file may have, one more than options do."""


@dataclass(frozen=True)
class Call:
    """What was asked for.

    Args:
        command: The name of the command.
        given: The options that were given, in the configuration file or as flags, which win.
        run: The folder of a fit, where the command takes one.
        debug: Whether a failure should show its traceback.
    """

    command: str
    given: Mapping[str, Any]
    run: Path | None = None
    debug: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """The values of all options."""
        return with_values(self.command, self.given)


def with_values(command: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all options of a command: those given, and the defaults of the others."""
    return {option.name: given.get(option.name, option.default) for option in COMMANDS[command].options}


class _Parser(argparse.ArgumentParser):
    """A parser that raises its complaints."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(message)


class _Help(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=min(100, _columns()) - 2)


def _columns() -> int:
    try:
        return int(os.environ.get("COLUMNS", "")) or os.get_terminal_size().columns
    except (ValueError, OSError):
        return 80


def parse(arguments: Sequence[str]) -> Call:
    """Reads a command line.

    Args:
        arguments: The arguments, without the name of the program.

    Raises:
        CommandError: If they cannot be understood.
    """
    parser, arguments = _build(), _joined(arguments)
    name = next((each for each in arguments if not each.startswith("-")), None)
    if name is not None and name not in COMMANDS:
        raise CommandError(f"{name!r} is no command: {_nearest(name, list(COMMANDS))}")
    known, unknown = parser.parse_known_args(list(arguments))
    if known.command is None:
        raise CommandError(f"a command is missing: give one of {', '.join(COMMANDS)}, or --help")
    command = COMMANDS[known.command]
    if unknown:
        _complain(known.command, unknown[0])
    values = vars(known)
    given = _read_config(known.command, values["config"]) if values["config"] else {}
    for option in command.options:
        if values[option.name] is not None:
            given[option.name] = _convert(option, values[option.name], option.flag)
    run = given.pop("run", None) if values.get("run") is None else values["run"]
    if command.takes_run and run is None:
        raise CommandError(f"DIR is missing: give the folder of {command.folder}, as in {command.example}")
    return Call(known.command, given, Path(run) if command.takes_run else None, known.debug)


def _joined(arguments: Sequence[str]) -> list[str]:
    """Makes one argument of the two words of a command such as `bench report`."""
    joined = " ".join(arguments[:2])
    return [joined, *arguments[2:]] if joined in COMMANDS else list(arguments)


def _build() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="bayeslora",
        description="Bayesian LoRA adapters for language models.",
        epilog="bayeslora COMMAND --help tells the options of a command.",
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"bayeslora-pyro {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.about,
            description=f"{command.about[0].upper()}{command.about[1:]}.",
            epilog=f"Example: {command.example}",
            formatter_class=_Help,
            allow_abbrev=False,
            usage=f"bayeslora {name} {'DIR ' if command.takes_run else ''}[--config FILE] [options]",
        )
        _fill(sub, command)
    return parser


def _fill(parser: argparse.ArgumentParser, command: Command) -> None:
    if command.takes_run:
        parser.add_argument("run", nargs="?", metavar="DIR", help=f"the folder of {command.folder}")
    parser.add_argument("--config", metavar="FILE", help="a YAML file of options; flags win over it")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    groups: dict[str, Any] = {"options": parser}
    for option in command.options:
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group)
        groups[option.group].add_argument(option.flag, **_settings(option))


def _settings(option: Option) -> dict[str, Any]:
    about = option.about.replace("`", "").replace('"', "").replace("%", "%%").rstrip(".")
    if option.default is not None and not option.type.is_switch:
        about += f" (default: {option.default})"
    settings: dict[str, Any] = {"dest": option.name, "default": None, "help": about}
    if option.type.has_no_form:
        return settings | {"action": argparse.BooleanOptionalAction}
    if option.type.is_switch:
        return settings | {"action": "store_true"}
    if option.type.many:
        settings |= {"nargs": "+", "action": "extend"}
    return settings | {"metavar": option.type.metavar}


def _convert(option: Option, value: Any, named: str) -> Any:
    try:
        return option.type.convert(value)
    except ValueError as error:
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        raise CommandError(f"{named} {shown}: {error}") from None


def _read_config(name: str, path: str) -> dict[str, Any]:
    """Reads the options of a configuration file."""
    yaml: Any = importlib.import_module("yaml")  # untyped
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CommandError(f"--config {path}: {error.strerror}: give a YAML file") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        place = "" if mark is None else f", line {mark.line + 1}"
        raise CommandError(f"--config {path}{place} is not YAML: {problem or one_line(error)}") from error
    if not isinstance(content, Mapping | None):
        raise CommandError(f"--config {path} holds no options: write one 'name: value' a line")
    command = COMMANDS[name]
    options = {option.name: option for option in command.options}
    given: dict[str, Any] = {}
    for key, value in _flatten(content or {}):
        if key == "run" and command.takes_run:
            given[key] = str(value)
        elif key not in options:
            raise CommandError(f"--config {path}: there is no option {key!r}: {_nearest(key, list(options))}")
        elif value is not None:
            given[key] = _convert(options[key], value, f"--config {path}: {key}")
    return given


def _flatten(content: Mapping[Any, Any], prefix: str = "") -> list[tuple[str, Any]]:
    if prefix.count(".") > MAX_LEVELS:  # which anchors that refer to one another would make without end
        return [(prefix[:-1], None)]
    rows: list[tuple[str, Any]] = []
    for key, value in content.items():
        name = prefix + str(key).replace("-", "_")
        rows += _flatten(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return rows


def _complain(name: str, unknown: str) -> NoReturn:
    if not unknown.startswith("-"):
        raise CommandError(f"{unknown!r} is one argument too many: put values behind a --flag")
    flag = unknown.partition("=")[0]
    flags = [option.flag for option in COMMANDS[name].options]
    raise CommandError(f"{flag} is no option of {name}: {_nearest(flag, flags)}")


def _nearest(name: str, names: list[str]) -> str:
    if close := difflib.get_close_matches(name, names, n=1):
        return f"did you mean {close[0]}?"
    return f"give one of {', '.join(names)}" if len(names) < 8 else "see --help for those there are"
