"""Laplace approximations of linear regression, where they are exact."""

import math
from typing import Any

import pytest
import torch
from torch.distributions import MultivariateNormal

from bayeslora_pyro import BayesianLora, DeltaGuide, Posterior, Regression, laplace_posterior

from .exact import rand
from .laplace_cases import DOUBLE, facts, moments
from .linear import linear_data, linear_lora
from .tiny import tiny_bert

NOISE = 0.5


class TestLinearRegression:
    """With normal noise and one output, the approximation of A given B is exact."""

    precision = 0.7

    def design(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The Jacobian by vec A, the residual at the LoRA, and vec A."""
        peft_model, batch = linear_lora(), linear_data()
        model = BayesianLora(peft_model, "point", Regression(scale=NOISE), num_data=9)
        weights = model.lora_weights()
        a, b = weights["A_2x4"][0], weights["B_1x2"][0]
        x = batch["inputs_embeds"]
        jacobian = torch.einsum("or,ni->nri", b, x).flatten(1)
        with torch.no_grad():
            residual = batch["labels"] - peft_model(inputs_embeds=x).logits[:, 0]
        return jacobian, residual, a.flatten()

    @pytest.mark.parametrize("sharing", ["expand", "reduce"])
    def test_posterior_predictive_and_evidence_are_exact(self, sharing: Any) -> None:
        jacobian, residual, vec_a = self.design()
        model = BayesianLora(linear_lora(), "point", Regression(scale=NOISE), num_data=9)
        found = laplace_posterior(
            model, [linear_data()], modules="*.A", precision=self.precision, sharing=sharing
        )
        identity = torch.eye(8, dtype=DOUBLE)
        precision = jacobian.T @ jacobian / NOISE**2 + self.precision * identity
        q = found.guide.get_posterior(next(s for s in found.stacks if s.role == "A"))
        dense = MultivariateNormal(vec_a, precision_matrix=precision)
        value = rand(2, 4, seed=3)
        torch.testing.assert_close(q.log_prob(value[None]).squeeze(), dense.log_prob(value.flatten()))
        test = linear_data(5, seed=9)
        b = model.lora_weights()["B_1x2"][0]
        at_test = torch.einsum("or,ni->nri", b, test["inputs_embeds"]).flatten(1)
        _, covariance = moments(found, test)
        wanted = torch.einsum("nd,de,ne->n", at_test, precision.inverse(), at_test)
        torch.testing.assert_close(covariance[:, 0, 0], wanted)
        likelihood = -0.5 * (residual / NOISE).square().sum() - 9 * math.log(NOISE * (2 * math.pi) ** 0.5)
        evidence = likelihood - 0.5 * (
            self.precision * vec_a.square().sum() + (precision / self.precision).logdet()
        )
        assert facts(found)["log_evidence"] == pytest.approx(
            evidence.item(), rel=1e-8
        )  # the noise is a float32

    def test_the_evidence_at_the_mode_is_the_exact_one(self) -> None:
        """At the posterior mode, the formula is the marginal likelihood of Bayesian linear regression."""
        jacobian, _, _ = self.design()
        batch, peft_model = linear_data(), linear_lora()
        with torch.no_grad():
            base = batch["inputs_embeds"] @ peft_model.get_base_model().layer.base_layer.weight[0]
        target = batch["labels"] - base
        identity = torch.eye(8, dtype=DOUBLE)
        precision = jacobian.T @ jacobian / NOISE**2 + self.precision * identity
        mode = torch.linalg.solve(precision, jacobian.T @ target / NOISE**2)
        model = BayesianLora(peft_model, "point", Regression(scale=NOISE), num_data=9)
        lora = model.lora_weights() | {"A_2x4": mode.reshape(1, 2, 4)}
        model = BayesianLora(peft_model, "point", Regression(scale=NOISE), num_data=9, initial=lora)

        fitted = Posterior(model, DeltaGuide(model))
        found = laplace_posterior(fitted, [batch], modules="*.A", precision=self.precision)
        covariance = jacobian @ jacobian.T / self.precision + NOISE**2 * torch.eye(9, dtype=DOUBLE)
        wanted = MultivariateNormal(torch.zeros(9, dtype=DOUBLE), covariance).log_prob(target)
        assert facts(found)["log_evidence"] == pytest.approx(wanted.item(), rel=1e-8)

    def test_noise_that_is_predicted_is_part_of_the_curvature(self) -> None:
        model = BayesianLora(tiny_bert(num_labels=2, dtype=DOUBLE), "point", Regression("predicted"), 5)
        scores = rand(4, 2, seed=1)
        root = model.likelihood.fisher_root(scores)
        raw = scores.clone().requires_grad_()

        def divergence(moved: torch.Tensor) -> torch.Tensor:
            still = model.likelihood.of_scores(scores, {})
            return torch.distributions.kl_divergence(still, model.likelihood.of_scores(moved, {})).sum()

        hessian = torch.autograd.functional.hessian(divergence, raw)
        torch.testing.assert_close(root @ root.mT, torch.einsum("ncnd->ncd", hessian))
