"""Names for the dimensions of sites whose stacks differ in adapters and shapes; free of torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["name_dims"]


def name_dims(
    site_dims: Mapping[str, Sequence[str]],
    shapes: Mapping[str, Sequence[int]],
    adapters: Mapping[str, Sequence[str]],
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Name the dimensions of each site so that one name has one size and one set of coordinates.

    A stack that holds every adapted module shares the dimension ``adapter``; one that holds some has its
    own, ``adapter@<stack>``. Any other dimension keeps its name where all sites agree on its size, and
    becomes ``<name>@<stack>`` where they do not.

    Args:
        site_dims: The names each site gives its dimensions, such as ``("adapter", "inducing_row")``.
        shapes: The sizes of these dimensions.
        adapters: The module names of each stack, by the name of the stack.

    Returns:
        The dimensions of each site, and the coordinates of the adapter dimensions.

    Raises:
        ValueError: If a site has not as many names as dimensions.
    """
    everyone = list(dict.fromkeys(module for modules in adapters.values() for module in modules))
    sizes: dict[str, set[int]] = {}
    for site, names in site_dims.items():
        if len(names) != len(shapes[site]):
            raise ValueError(f"site_dims[{site!r}] is {tuple(names)}, but draws are {tuple(shapes[site])}")
        for name, size in zip(names, shapes[site], strict=True):
            sizes.setdefault(name, set()).add(size)

    dims: dict[str, list[str]] = {}
    coords = {"adapter": everyone}
    for site, names in site_dims.items():
        stack = site.rpartition(".")[0]
        modules = list(adapters.get(stack, everyone))
        shared = {name: len(sizes[name]) == 1 for name in names} | {"adapter": modules == everyone}
        labels = {name: name if shared[name] else f"{name}@{stack}" for name in names}
        dims[site] = [labels[name] for name in names]
        if "adapter" in labels:
            coords[labels["adapter"]] = modules
    return dims, coords
