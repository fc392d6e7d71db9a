"""From a posterior, or one for each chain, to an ArviZ container with named dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bayeslora_pyro.diagnostics.arrays import Container, from_arrays, is_container
from bayeslora_pyro.diagnostics.chain import collect_chain
from bayeslora_pyro.diagnostics.facts import (
    collect_facts,
    collect_item_facts,
    depends_on_items,
    extra_parameters,
)
from bayeslora_pyro.diagnostics.naming import name_dims
from bayeslora_pyro.diagnostics.observations import Groups
from bayeslora_pyro.diagnostics.protocols import PosteriorLike
from bayeslora_pyro.types import Batch

__all__ = ["as_container", "to_arviz"]


def to_arviz(
    posterior: PosteriorLike | Sequence[PosteriorLike],
    batches: Iterable[Batch] | None = None,
    *,
    fitted_to: Iterable[Batch] | None = None,
    num_draws: int = 32,
    seed: int = 0,
    sites: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    prior_predictive: bool = False,
) -> Container:
    r"""Collect draws, predictions and the history of a fit into an ArviZ container.

    The groups are ``posterior``, ``prior``, ``sample_stats``, ``constant_data`` (the history of the fit by
    `step`, and what it left behind by `factor` and `adapter`), and with batches ``posterior_predictive``,
    ``log_likelihood`` and ``observed_data``; of texts, which are scored and not predicted, ``log_likelihood``
    alone. ``posterior_predictive`` holds a sampled ``y`` and the parameters of its distribution: ``log_probs``
    of classes, ``loc`` and ``scale`` of numbers. Next to the latent sites stand ``update_norm``, the Frobenius
    norm :math:`\|BA\|` of each adapter's update, and ``update_rank``, its effective rank. A posterior without
    latent sites, such as that of plain LoRA, has neither ``posterior`` nor ``prior``; where the noise of the
    factors depends on the item, its size is in ``constant_data`` as ``alpha``, by `item` and `factor`. The
    dimension ``adapter`` holds all adapted modules; a stack of only some of them has its own,
    ``adapter@<stack>``, and so has any other dimension on whose size the sites differ.

    A chain is one independent fit: draws of one guide are independent by construction, so R-hat and effective
    sample sizes say nothing until several posteriors are passed. Snapshots of one fit are chains too, and not
    independent: the attribute ``num_fits`` says how many fits the chains are of.

    ``sample_stats`` holds ``log_prior``, ``log_guide``, ``log_likelihood_sum`` and their log joint density
    ``lp = log_prior + log_likelihood_sum``. Its data are the training data where ``fitted_to`` is passed:
    only then is :func:`~bayeslora_pyro.diagnostics.khat` about the fit, and ``fitted_log_likelihood`` holds the
    log-likelihood of each training item. Else they are the batches.

    Args:
        posterior: The posterior, or one for each independent fit, or snapshot, of the same model.
        batches: The items to predict and score, such as a test loader that does not shuffle.
        fitted_to: The whole training data.
        num_draws: The number of draws from each posterior; k-hat needs 30.
        seed: The seed of the draws; the i-th posterior uses `seed + i`.
        sites: The latent sites to keep, all by default. The weights of large models take much space:
            `sites=()` keeps ``update_norm`` and ``update_rank`` alone.
        label_names: The names of the classes, by default ``label_names`` of the metadata, or their indices.
        prior_predictive: Whether to predict the batches with draws from the prior as well, in a group
            ``prior_predictive``.

    Returns:
        An ``InferenceData`` under ArviZ 0.23, an ``xarray.DataTree`` under ArviZ 1.x.

    Raises:
        ValueError: If posteriors, sites, labels or data do not fit together.
    """
    posteriors = list(posterior) if isinstance(posterior, Sequence) else [posterior]
    _check_alike(posteriors)
    first = posteriors[0]
    kept = _check_sites(sites, first.site_dims)
    # A generator would be exhausted, and a shuffling loader reordered, by the second pass.
    if len(posteriors) > 1 or prior_predictive or depends_on_items(first):
        batches = None if batches is None else list(batches)
        fitted_to = None if fitted_to is None else list(fitted_to)
    chains = [
        collect_chain(each, batches, fitted_to, kept, num_draws, seed + i, prior_predictive)
        for i, each in enumerate(posteriors)
    ]
    groups = _stack_chains(chains)
    histories, steps = _stack_histories([each.history for each in posteriors])
    facts = [collect_facts(each, num_draws, seed + i) for i, each in enumerate(posteriors)]
    if batches is not None and depends_on_items(first):
        facts = [
            fact | collect_item_facts(each, batches) for fact, each in zip(facts, posteriors, strict=True)
        ]
    left = {name: np.stack([each[name] for each in facts]) for name in facts[0]}
    groups["constant_data"] = histories | left
    shapes = {name: groups["posterior"][name].shape[2:] for name in kept}
    adapters = {stack.name: stack.adapters for stack in first.stacks}
    dims, coords = name_dims({name: first.site_dims[name] for name in kept}, shapes, adapters)
    dims |= {
        "update_norm": ["adapter"],
        "update_rank": ["adapter"],
        "y": ["item"],
        "log_probs": ["item", "label"],
    }
    dims |= {"loc": ["item"], "scale": ["item"], "fitted_log_likelihood": ["fitted_item"]}
    dims |= {name: ["chain", "step"] for name in histories}
    dims |= {name: ["chain", "adapter" if name.startswith("mean_update") else "factor"] for name in left}
    dims |= {"alpha": ["chain", "item", "factor"]}
    factors = [f"{stack.name}/{module}" for stack in first.stacks for module in stack.adapters]
    coords |= {"factor": factors} if left else {}
    names = label_names if label_names is not None else first.metadata.get("label_names")
    axes: dict[str, Sequence[Any]] = {**coords, "step": steps, **_label_coords(groups, names)}
    scored = "fitted_to" if fitted_to is not None else "batches"
    num_fits = _num_fits(posteriors)
    known: dict[str, Any] = {
        "chain": "one independent fit each" if num_fits == len(posteriors) else "one snapshot of a fit each",
        "num_fits": num_fits,
        "num_draws": num_draws,
        "draw_seed": seed,
        "lp_data": scored if "lp" in groups["sample_stats"] else "none",
    }
    if (temperature := getattr(first, "temperature", None)) is not None:
        known["mean_temperature"] = temperature
    if (extra := extra_parameters(first)) is not None:
        known["extra_parameters"] = extra
    shared = {n: value for n, value in first.metadata.items() if n != "snapshot" or len(posteriors) == 1}
    return from_arrays({n: g for n, g in groups.items() if g}, dims, axes, {**shared, **known})


def as_container(
    posterior: PosteriorLike | Sequence[PosteriorLike] | Container,
    batches: Iterable[Batch] | None = None,
    **options: Any,
) -> Container:
    """Return a container as it is, and of a posterior the one that :func:`to_arviz` makes, without its weights."""
    return posterior if is_container(posterior) else to_arviz(posterior, batches, sites=(), **options)


def _check_alike(posteriors: Sequence[PosteriorLike]) -> None:
    if not posteriors:
        raise ValueError("posterior should be a posterior or several, got an empty sequence")
    for i, posterior in enumerate(posteriors):
        if posterior.stacks != posteriors[0].stacks or posterior.site_dims != posteriors[0].site_dims:
            raise ValueError(
                f"posterior[{i}] has other stacks or sites than posterior[0]: chains are fits of one model, "
                "report different models apart"
            )


def _num_fits(posteriors: Sequence[PosteriorLike]) -> int:
    """How many fits the posteriors are of: the snapshots of a fit share its settings, its seed among them."""
    if not any("snapshot" in each.metadata for each in posteriors):
        return len(posteriors)
    settings = [each.metadata.get("fit") for each in posteriors]
    return sum(each not in settings[:i] for i, each in enumerate(settings))


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
