"""Pyro modules with abstract methods."""

from __future__ import annotations

from abc import ABCMeta

from pyro.nn.module import PyroModule, _PyroModuleMeta

__all__ = ["AbstractPyroModule"]


class _AbstractPyroModuleMeta(_PyroModuleMeta, ABCMeta):
    pass


class AbstractPyroModule(PyroModule, metaclass=_AbstractPyroModuleMeta):
    """A `PyroModule` that cannot be created before its abstract methods are filled in."""
