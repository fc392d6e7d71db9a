"""One draw of all factors as a share of one plain forward pass, and against a factor-by-factor loop."""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass

import torch
from cases import Case, guide_of
from timing import Row, alternate, main, milliseconds, ratios
from torch import Tensor
from torch.nn.functional import linear, softplus

from bayeslora_pyro import BayesianLora, FlowGuide
from bayeslora_pyro.guides import Guide
from bayeslora_pyro.isolation import private_pyro

BARS = {"smollm2": 0.02}


@dataclass(frozen=True)
class LoopFactor:
    """One factor in the loop: the parameters of its prior and guide, as plain tensors.

    Args:
        z_row: The locations of the rows, `(p, d_o)`; of the columns in `z_col`, `(q, d_i)`.
        raw_d_row: The nuggets of the rows before softplus, `(p,)`; of the columns in `raw_d_col`.
        log_scale: The logarithm of the scale of the weights, `()`.
        loc: The mean of the base distribution, `(p, q)`, with the logarithm of its deviation in `base_log_scale`.
        raw_noise_scale: The noise scale before the sigmoid, `()`.
        layers: The masked weight and the bias of each layer of the flow; none for mean field.
    """

    z_row: Tensor
    raw_d_row: Tensor
    z_col: Tensor
    raw_d_col: Tensor
    log_scale: Tensor
    loc: Tensor
    base_log_scale: Tensor
    raw_noise_scale: Tensor
    layers: tuple[tuple[Tensor, Tensor], ...]

    def draw(self) -> Tensor:
        """Draws the factor with the mathematics of the library and none of its batching."""
        latent = self.loc + self.base_log_scale.exp() * torch.randn_like(self.loc)
        if self.layers:
            latent = self._flow(latent)
        rows = _map(self.z_row, self.raw_d_row)
        cols = _map(self.z_col, self.raw_d_col)
        (p, d_o), (q, d_i) = self.z_row.shape, self.z_col.shape
        core = torch.randn(p, q, device=latent.device)
        if d_o * q <= p * d_i:
            border = torch.randn(d_o, d_i + q, device=latent.device)
            white, inducing = border[:, :d_i], rows @ torch.cat([border @ cols.T, core])
        else:
            border = torch.randn(d_o + p, d_i, device=latent.device)
            white, inducing = border[:d_o], torch.cat([rows @ border, core], dim=1) @ cols.T
        noise_scale, scale = self.raw_noise_scale.sigmoid(), self.log_scale.exp()
        lifted = rows[:, :d_o].T @ ((latent - noise_scale * inducing) @ cols[:, :d_i])
        return scale * (noise_scale * white + lifted)

    def _flow(self, latent: Tensor) -> Tensor:
        *hidden, (weight, bias) = self.layers
        values = latent
        for hidden_weight, hidden_bias in hidden:
            values = linear(values, hidden_weight, hidden_bias).relu()
        shift, log_scale = linear(values, weight, bias).chunk(2, dim=-1)
        return latent * log_scale.clamp(-5.0, 3.0).exp() + shift


def _map(locations: Tensor, raw_nuggets: Tensor) -> Tensor:
    joint = torch.cat([locations, softplus(raw_nuggets).diag()], dim=-1).double()
    cholesky = torch.linalg.cholesky(joint @ joint.T)
    return torch.linalg.solve_triangular(cholesky, joint, upper=False).to(locations.dtype)


def loop_of(model: BayesianLora, guide: Guide) -> list[LoopFactor]:
    """Takes a guide apart, factor by factor, before any clock runs."""
    factors = []
    for stack in model.stacks:
        prior, own = getattr(model.prior_of(stack), stack.name), guide._own(stack)
        parts = (prior.z_row, prior.raw_d_row, prior.z_col, prior.raw_d_col, prior.log_scale)
        parts += (own.loc, own.log_scale, own.raw_noise_scale)
        layers = (
            guide.get_transform(stack).copies.transform[0].arn.layers if isinstance(guide, FlowGuide) else ()
        )
        masked = [(layer.weight * layer.mask, layer.bias) for layer in layers]
        for i in range(len(stack)):
            flow = tuple((weight[i].detach(), bias[i].detach()) for weight, bias in masked)
            factors.append(LoopFactor(*(part[i].detach() for part in parts), flow))
    return factors


def measure(case: Case, options: argparse.Namespace) -> Row:
    """Times one draw, the loop over factors and one forward pass in turn."""
    model = BayesianLora(case.peft_model, "inducing", case.likelihood)
    guide = guide_of(model, options.guide)
    factors = loop_of(model, guide)
    contenders = {
        "ours": guide,
        "loop": lambda: [factor.draw() for factor in factors],
        "plain": case.plain_forward,
    }
    with torch.no_grad(), private_pyro():
        times = alternate(contenders, options)
    loop = statistics.median(a / b for a, b in zip(times["loop"], times["ours"], strict=True))
    return ratios(times["ours"], times["plain"]) | {
        "loop": round(loop, 3),
        "loop_ms": milliseconds(times["loop"]),
        "factors": len(factors),
    }


if __name__ == "__main__":
    main("Draws: one draw of all factors / one plain LoRA forward", measure, BARS, repeats=15)
