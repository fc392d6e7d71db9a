"""From a posterior, or one for each independent fit, to an ArviZ container with named dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslora_pyro.diagnostics.arrays import Container, from_arrays
from bayeslora_pyro.diagnostics.chain import collect_chain
from bayeslora_pyro.diagnostics.naming import name_dims
from bayeslora_pyro.diagnostics.observations import Groups
from bayeslora_pyro.diagnostics.protocols import PosteriorLike
from bayeslora_pyro.types import Batch

__all__ = ["to_arviz"]


def to_arviz(
    posterior: PosteriorLike | Sequence[PosteriorLike],
    batches: Iterable[Batch] | None = None,
    *,
    fitted_to: Iterable[Batch] | None = None,
    num_draws: int = 32,
    seed: int = 0,
    sites: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
) -> Container:
    r"""Collect draws, predictions and the history of a fit into an ArviZ container.

    The groups are ``posterior``, ``prior``, ``sample_stats``, ``constant_data`` (the history of the fit, by
    `step`), and with batches ``posterior_predictive``, ``log_likelihood`` and ``observed_data``; of texts, which
    are scored and not predicted, ``log_likelihood`` alone. ``posterior_predictive`` holds a sampled ``y`` and the
    parameters of its distribution: ``log_probs`` of classes, ``loc`` and ``scale`` of numbers. Next to the
    latent sites stands ``update_norm``, the Frobenius norm :math:`\|BA\|` of each adapter's update. The
    dimension ``adapter`` holds all adapted modules; a stack of only some of them has its own,
    ``adapter@<stack>``, and so has any other dimension on whose size the sites differ.

    A chain is one independent fit: draws of one guide are independent by construction, so R-hat and effective
    sample sizes say nothing until several posteriors are passed.

    ``sample_stats`` holds ``log_prior``, ``log_guide``, ``log_likelihood_sum`` and their log joint density
    ``lp = log_prior + log_likelihood_sum``. Its data are the training data where ``fitted_to`` is passed:
    only then is :func:`~bayeslora_pyro.diagnostics.khat` about the fit. Else they are the batches.

    Args:
        posterior: The posterior, or one for each independent fit of the same model.
        batches: The items to predict and score, such as a test loader that does not shuffle.
        fitted_to: The whole training data.
        num_draws: The number of draws from each posterior; k-hat needs 30.
        seed: The seed of the draws; the i-th posterior uses `seed + i`.
        sites: The latent sites to keep, all by default. The weights of large models take much space:
            `sites=()` keeps ``update_norm`` alone.
        label_names: The names of the classes, by default ``label_names`` of the metadata, or their indices.

    Returns:
        An ``InferenceData`` under ArviZ 0.23, an ``xarray.DataTree`` under ArviZ 1.x.

    Raises:
        ValueError: If posteriors, sites, labels or data do not fit together.
    """
    posteriors = list(posterior) if isinstance(posterior, Sequence) else [posterior]
    _check_alike(posteriors)
    first = posteriors[0]
    kept = _check_sites(sites, first.site_dims)
    # A generator would be exhausted, and a shuffling loader reordered, by the second posterior.
    if len(posteriors) > 1:
        batches = None if batches is None else list(batches)
        fitted_to = None if fitted_to is None else list(fitted_to)
    chains = [
        collect_chain(each, batches, fitted_to, kept, num_draws, seed + i)
        for i, each in enumerate(posteriors)
    ]
    groups = _stack_chains(chains)
    groups["constant_data"], steps = _stack_histories([each.history for each in posteriors])
    shapes = {name: groups["posterior"][name].shape[2:] for name in kept}
    adapters = {stack.name: stack.adapters for stack in first.stacks}
    dims, coords = name_dims({name: first.site_dims[name] for name in kept}, shapes, adapters)
    dims |= {"update_norm": ["adapter"], "y": ["item"], "log_probs": ["item", "label"]}
    dims |= {"loc": ["item"], "scale": ["item"]}
    dims |= {name: ["chain", "step"] for name in groups["constant_data"]}
    names = label_names if label_names is not None else first.metadata.get("label_names")
    axes: dict[str, Sequence[Any]] = {**coords, "step": steps, **_label_coords(groups, names)}
    scored = "fitted_to" if fitted_to is not None else "batches"
    facts = {
        "chain": "one independent fit each",
        "num_draws": num_draws,
        "draw_seed": seed,
        "lp_data": scored if "lp" in groups["sample_stats"] else "none",
    }
    return from_arrays(groups, dims, axes, {**first.metadata, **facts})


def _check_alike(posteriors: Sequence[PosteriorLike]) -> None:
    if not posteriors:
        raise ValueError("posterior should be a posterior or several, got an empty sequence")
    for i, posterior in enumerate(posteriors):
        if posterior.stacks != posteriors[0].stacks or posterior.site_dims != posteriors[0].site_dims:
            raise ValueError(
                f"posterior[{i}] has other stacks or sites than posterior[0]: chains are fits of one model, "
                "report different models apart"
            )


def _check_sites(sites: Sequence[str] | None, site_dims: Mapping[str, Sequence[str]]) -> list[str]:
    if sites is None:
        return list(site_dims)
    unknown = [name for name in sites if name not in site_dims]
    if unknown:
        raise ValueError(f"sites names {unknown}, but the latent sites are {list(site_dims)}")
    return list(sites)


def _stack_chains(chains: Sequence[Groups]) -> Groups:
    stacked: Groups = {}
    for group, variables in chains[0].items():
        if group == "observed_data":
            if any(not np.array_equal(chain[group]["y"], variables["y"]) for chain in chains):
                raise ValueError("batches gave the posteriors different labels: pass the same items to each")
            stacked[group] = variables
        else:
            stacked[group] = {name: np.stack([chain[group][name] for chain in chains]) for name in variables}
    return stacked


def _stack_histories(
    histories: Sequence[Sequence[Mapping[str, Any]]],
) -> tuple[dict[str, NDArray[Any]], list[int]]:
    steps = sorted({int(row["step"]) for history in histories for row in history})
    names = dict.fromkeys(name for history in histories for row in history for name in row if name != "step")
    columns = {name: np.full((len(histories), len(steps)), np.nan) for name in names}
    places = {step: i for i, step in enumerate(steps)}
    for chain, history in enumerate(histories):
        for row in history:
            for name in row.keys() - {"step"}:
                columns[name][chain, places[int(row["step"])]] = row[name]
    return columns, steps


def _label_coords(groups: Groups, names: Sequence[str] | None) -> dict[str, list[Any]]:
    if "log_probs" not in groups.get("posterior_predictive", {}):
        return {}
    num_classes = groups["posterior_predictive"]["log_probs"].shape[-1]
    if names is None:
        return {"label": list(range(num_classes))}
    if len(names) != num_classes:
        raise ValueError(f"label_names has {len(names)} names, but predictions have {num_classes} classes")
    return {"label": list(names)}
