"""Several posteriors that count alike, called chains: independent fits, or snapshots of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn

from bayeslora_pyro import folders
from bayeslora_pyro.posterior import Posterior
from bayeslora_pyro.prediction import Prediction, RegressionPrediction
from bayeslora_pyro.replacing import new_folder, restore
from bayeslora_pyro.types import Batch

__all__ = ["Ensemble"]

CONFIG = "ensemble.json"
FORMAT = 1
DEFAULT_DRAWS = 16


class Ensemble(Sequence[Posterior]):
    r"""A mixture of posteriors with equal weights, :math:`q(W) = \frac1K \sum_k q_k(W)`.

    Of LoRA fits it is a deep ensemble; of Bayesian fits, a posterior with several modes. It is also a sequence of
    chains, so :func:`~bayeslora_pyro.to_arviz` takes it as it is.

    Args:
        posteriors: The members, at least one.

    References:
        | Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles (Lakshminarayanan et al., 2017)
        | https://arxiv.org/abs/1612.01474
    """

    def __init__(self, posteriors: Sequence[Posterior]) -> None:
        if not posteriors:
            raise ValueError("posteriors is empty: an ensemble has at least one member.")
        self.posteriors = tuple(posteriors)

    def __len__(self) -> int:
        return len(self.posteriors)

    @overload
    def __getitem__(self, index: int) -> Posterior: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Posterior, ...]: ...

    def __getitem__(self, index: int | slice) -> Posterior | tuple[Posterior, ...]:
        return self.posteriors[index]

    def predict(
        self, batches: Iterable[Batch], num_draws: int | None = None, seed: int = 0, **options: Any
    ) -> Prediction | RegressionPrediction:
        """Predicts each item with draws of every member, one member after another.

        Args:
            batches: What a collator yields; items keep this order.
            num_draws: The number of draws of all members together, a multiple of their number; about 16 by default.
            seed: The seed of the draws; member `k` uses `seed + k`.
            options: Further arguments of :meth:`Posterior.predict`.
        """
        share, kept = self._share(num_draws), list(batches)
        parts = [member.predict(kept, share, seed + k, **options) for k, member in enumerate(self)]
        return _join(parts)

    def log_likelihood(
        self, batches: Iterable[Batch], num_draws: int | None = None, seed: int = 0, **options: Any
    ) -> Tensor:
        """The log-likelihood of each item under each draw. Shape `(draw, item)`; see :meth:`predict`."""
        share, kept = self._share(num_draws), list(batches)
        return torch.cat(
            [member.log_likelihood(kept, share, seed + k, **options) for k, member in enumerate(self)]
        )

    def save(self, folder: str | Path) -> None:
        """Writes the members into `chain-0`, `chain-1`, … of a folder; all of them or none."""
        with new_folder(Path(folder), CONFIG, "chain-*") as target:
            for index, posterior in enumerate(self):
                posterior.save(target / f"chain-{index}")
            record = {"format": FORMAT, "num_chains": len(self)}
            (target / CONFIG).write_text(json.dumps(record), encoding="utf-8")

    def draws(self, num_draws: int, folder: str | Path, seed: int = 0) -> list[Path]:
        """Writes draws as ordinary PEFT folders, those of one member after another; see :meth:`Posterior.draws`.

        Args:
            num_draws: The number of draws of all members together, a multiple of their number.
            folder: Where the folders `draw-000`, `draw-001`, … go; draws that are there already are replaced.
            seed: The seed of the draws; member `k` uses `seed + k`.
        """
        return folders.save_draws(self, Path(folder), self._share(num_draws), seed)

    @classmethod
    def load(cls, folder: str | Path, base_model: Any = None, **parts: Any) -> Ensemble:
        """Reads an ensemble, exactly as it was saved.

        Args:
            folder: What :meth:`save` wrote.
            base_model: The base model without an adapter, which the members then share, with one LoRA; or a function
                that returns it, one for each member; by default each loads the one that the folder names.
            parts: See :meth:`Posterior.load`.

        Raises:
            ValueError: If the folder is damaged, or its members cannot share a base model.
        """
        path = Path(folder)
        restore(path)
        try:
            record = json.loads((path / CONFIG).read_text(encoding="utf-8"))
            size = record["num_chains"] if record["format"] == FORMAT else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} holds no ensemble: it should have a readable {CONFIG}.") from error
        if type(size) is not int or size < 1 or not _has_members(path, size):
            raise ValueError(f"{path / CONFIG} is damaged, or of another version: fit again.")
        places = [path / f"chain-{index}" for index in range(size)]
        if isinstance(base_model, nn.Module):
            return cls(_load_sharing(places, base_model, parts))
        return cls([Posterior.load(place, base_model() if base_model else None, **parts) for place in places])

    def _share(self, num_draws: int | None) -> int:
        """The number of draws of each member."""
        if num_draws is None:
            return max(1, DEFAULT_DRAWS // len(self))
        if num_draws < 1 or num_draws % len(self):
            raise ValueError(
                f"num_draws should be a multiple of the {len(self)} members, so that each counts alike; "
                f"it is {num_draws}."
            )
        return num_draws // len(self)


def _has_members(folder: Path, size: int) -> bool:
    """Whether a folder holds the members that it should, and no more."""
    names = {path.name for path in folder.glob("chain-*")}
    return len(names) == size and names == {f"chain-{index}" for index in range(size)}


def _load_sharing(places: Sequence[Path], base_model: nn.Module, parts: dict[str, Any]) -> list[Posterior]:
    """Loads members over one base model, whose LoRA they share as they did when they were fitted."""
    known = [folders.peft_record(place) for place in places]
    for place, record in zip(places, known, strict=True):
        if record != known[0]:
            raise ValueError(
                f"base_model cannot be shared: the LoRA of {place} is not that of {places[0].name}. Give a function "
                "that returns the base model, one for each member."
            )
    members = [Posterior.load(places[0], base_model, **parts)]
    shared = parts | {"peft_model": members[0].model.adapter.peft_model}
    return members + [Posterior.load(place, **shared) for place in places[1:]]


def _join(parts: Sequence[Prediction | RegressionPrediction]) -> Prediction | RegressionPrediction:
    """Puts the draws of all members one after another."""
    labels = parts[0].labels
    if isinstance(parts[0], Prediction):
        return Prediction(torch.cat([part.log_probs for part in parts]), labels)  # type: ignore[union-attr]
    loc, scale = (torch.cat([getattr(part, name) for part in parts]) for name in ("loc", "scale"))
    return RegressionPrediction(loc, scale, labels)
