"""Which prior is for which factor: keys by role, or by the name of the adapted module."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from bayeslora_pyro.types import Role

__all__ = ["Placement"]

ALL = "AB"
"""The key for the factors of both roles."""


class Placement:
    """Chooses a key for each factor.

    A key is a role, `"A"` or `"B"`, or `"AB"` for both; or a pattern of shell wildcards for the name of the adapted
    module, such as `"*.layer.[0-5].*"`, or for the name of the factor, which is that of its module and its role:
    `"*.query.B"`. Of several keys that fit, the most specific counts, the one with the most characters that are no
    wildcards.

    Args:
        keys: The keys.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = tuple(sorted(keys))

    def key_of(self, role: Role, module: str) -> str:
        """The key of a factor.

        Raises:
            ValueError: If no key fits, or two of them do equally well.
        """
        fitting = [key for key in self.keys if _fits(key, role, module)]
        if not fitting:
            raise ValueError(
                f"prior should have an entry for each of the roles A and B, or for the names of modules, and has none "
                f"for {role} of {module!r}: its keys are {', '.join(map(repr, self.keys))}."
            )
        best = max(map(_specificity, fitting))
        first, *others = (key for key in fitting if _specificity(key) == best)
        if others:
            raise ValueError(
                f"prior has two entries that fit {role} of {module!r} equally well, {first!r} and {others[0]!r}: write "
                "out more of the name in one of them."
            )
        return first

    def check_used(self, chosen: Iterable[str]) -> None:
        """Raises a `ValueError` if a key is not among those that were chosen."""
        if unused := sorted({*self.keys} - {*chosen}):
            raise ValueError(
                f"prior has an entry {unused[0]!r} that is for no factor: its pattern fits none, or others fit better."
            )


def _fits(key: str, role: Role, module: str) -> bool:
    if key in ("A", "B", ALL):
        return role in key
    return fnmatchcase(module, key) or fnmatchcase(f"{module}.{role}", key)


def _specificity(key: str) -> int:
    return 0 if key == ALL else len(re.sub(r"\[[^]]*\]|[*?]", "", key))
