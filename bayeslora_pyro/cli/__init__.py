"""The command `bayeslora`."""

from bayeslora_pyro.cli.app import main as main

__all__ = ["main"]
