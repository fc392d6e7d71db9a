"""Likelihoods of classes, of texts and of numbers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, final

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroParam
from torch import Tensor
from torch.distributions import constraints

from bayeslora_pyro.models.likelihood import Likelihood, categorical, categorical_root, tiles, wide
from bayeslora_pyro.types import Batch

__all__ = ["Classification", "NextToken", "Regression"]


@final
class Classification(Likelihood):
    """One of the classes of a sequence classifier, whose logits have shape `(items, classes)`."""

    def config(self) -> dict[str, Any]:
        """The arguments that make this likelihood again."""
        return {}

    def distribution(self, outputs: Any, batch: Batch) -> TorchDistribution:
        """Categorical over the classes. Batch shape `(items,)`, or `(S, items)` for S tiles."""
        return self.of_scores(self.scores(outputs, batch), batch)

    def scores(self, outputs: Any, batch: Batch) -> Tensor:
        """The logits. Shape `(items, classes)`, or `(S, items, classes)`."""
        return tiles(wide(outputs.logits), self.num_items(batch))

    def of_scores(self, scores: Tensor, batch: Batch) -> TorchDistribution:
        """Categorical over the classes. Batch shape `(..., items)`."""
        return categorical(scores, batch.get("labels"))

    def fisher_root(self, scores: Tensor) -> Tensor:
        """The root of the covariance of a one-hot label. Shape `(items, classes, classes)`."""
        return categorical_root(scores)


@final
class NextToken(Likelihood):
    """Every token of a text given those before it; tokens whose label is -100 do not count."""

    is_text: ClassVar[bool] = True

    def config(self) -> dict[str, Any]:
        """The arguments that make this likelihood again."""
        return {}

    def observed(self, batch: Batch) -> Tensor | None:
        """The tokens that follow, `(items, tokens - 1)`; None if the batch has no labels."""
        labels = batch.get("labels")
        return None if labels is None else labels[:, 1:].clamp(min=0)

    def context(self, batch: Batch) -> Tensor | None:
        """The tokens before the first that is observed: the prompt, or the first token of all."""
        mask = batch["attention_mask"].bool()
        labels = batch.get("labels")
        observed = mask if labels is None else labels != -100
        later = torch.cat([torch.zeros_like(observed[:, :1]), observed[:, 1:]], dim=1)
        return mask & (later.cumsum(1) == 0)

    def distribution(self, outputs: Any, batch: Batch) -> TorchDistribution:
        """Categorical over the vocabulary at each position. Event shape `(tokens - 1,)`."""
        logits = tiles(wide(outputs.logits[:, :-1]), self.num_items(batch))
        labels = batch.get("labels")
        mask = batch["attention_mask"][:, 1:].bool() if labels is None else labels[:, 1:] != -100
        return dist.Categorical(logits=logits).mask(mask).to_event(1)


@final
class Regression(Likelihood):
    r"""A number with normal noise, :math:`y \sim \mathcal{N}(\mu(x), s^2)`.

    Args:
        noise: `"learned"` for one :math:`s` for all items, a parameter; `"predicted"` for :math:`s(x)`, from a second
            output of the head, :math:`s = \\mathrm{softplus}(\\cdot)`.
        scale: The initial :math:`s` where it is learned.
    """

    def __init__(self, noise: Literal["learned", "predicted"] = "learned", scale: float = 1.0) -> None:
        super().__init__()
        if noise not in ("learned", "predicted"):
            raise ValueError(f"noise should be 'learned' or 'predicted', and is {noise!r}.")
        if scale <= 0:
            raise ValueError(f"scale should be positive, and is {scale}.")
        self.noise = noise
        self.initial_scale = scale
        if noise == "learned":
            self.scale: Any = PyroParam(torch.tensor(float(scale)), constraints.positive)

    def config(self) -> dict[str, Any]:
        """The arguments that make this likelihood again."""
        return {"noise": self.noise, "scale": self.initial_scale}

    def distribution(self, outputs: Any, batch: Batch) -> TorchDistribution:
        """Normal. Batch shape `(items,)`, or `(S, items)` for S tiles."""
        return self.of_scores(self.scores(outputs, batch), batch)

    def scores(self, outputs: Any, batch: Batch) -> Tensor:
        """The mean, and what the noise is predicted from, if it is. Shape `(items, 1)` or `(items, 2)`, or with S."""
        values = tiles(wide(outputs.logits), self.num_items(batch))
        wanted = 1 if self.noise == "learned" else 2
        if values.shape[-1] != wanted:
            raise ValueError(
                f"The head has {values.shape[-1]} outputs, and noise={self.noise!r} takes {wanted}: "
                f"load the base model with num_labels={wanted}."
            )
        return values

    def of_scores(self, scores: Tensor, batch: Batch) -> TorchDistribution:
        """Normal. Batch shape `(..., items)`."""
        return dist.Normal(scores[..., 0], self._noise(scores))

    def fisher_root(self, scores: Tensor) -> Tensor:
        r"""The root of :math:`\mathrm{diag}(1 / s^2,\; 2 \dot s^2 / s^2)`, where :math:`\dot s = ds/df`."""
        noise = self._noise(scores).expand(scores.shape[:-1])
        root = noise.reciprocal().unsqueeze(-1)
        if self.noise == "predicted":
            root = torch.stack([root[..., 0], 2**0.5 * scores[..., 1].sigmoid() / noise], dim=-1)
        return root.diag_embed()

    def _noise(self, scores: Tensor) -> Tensor:
        if self.noise == "learned":
            return torch.as_tensor(self.scale)
        return torch.nn.functional.softplus(scores[..., 1]) + 1e-6
