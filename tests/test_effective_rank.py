"""The effective rank: what it counts, and that ARD finds the rank of data."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from bayeslora_pyro.elbo import PartsELBO
from bayeslora_pyro.guides import MeanFieldGuide
from bayeslora_pyro.models import ArdPrior, effective_rank, effective_ranks

from .exact import close
from .small_priors import RANK, moved_model

pytestmark = pytest.mark.usefixtures("local_parameters")


class TestEffectiveRank:
    @pytest.mark.parametrize("rank", [1, 2, 5])
    def test_equal_ranks_count_alike(self, rank):
        precision = torch.full((3, 5), 1e12, dtype=torch.float64)
        precision[:, :rank] = 4.0
        close(effective_rank(precision), torch.full((3,), float(rank)), 1e-9)

    def test_is_the_exponential_of_the_entropy(self):
        entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
        close(effective_rank(torch.tensor([4.0, 4.0 / 3], dtype=torch.float64)), math.exp(entropy))

    def test_precisions_taken_for_variances_would_be_caught(self):
        precision = torch.tensor([1e12, 1e12, 1.0], dtype=torch.float64)
        close(effective_rank(precision), 1.0, 1e-9)
        with pytest.raises(AssertionError):
            close(effective_rank(1 / precision), 1.0, 1e-9)

    @pytest.mark.parametrize("b", ["ard", "gaussian"])
    def test_of_an_update_is_that_of_both_factors(self, b):
        model = moved_model({"A": "ard", "B": b})
        stacks, ranks = model.stacks, effective_ranks(model)
        for index, module in enumerate(stacks[0].adapters):
            pair = [
                model.prior_of(stack).precision(stack)[index]
                for stack in stacks
                if b == "ard" or stack.role == "A"
            ]
            shares = 1 / torch.stack(pair).prod(0).detach()
            shares = shares / shares.sum()
            close(ranks[module], (-(shares * shares.log()).sum()).exp())
            assert 1 < ranks[module] < RANK

    def test_of_each_draw(self):
        model = moved_model(ArdPrior(concentration=2.5))
        draws = {f"{stack.name}.precision": torch.ones(7, len(stack), RANK) for stack in model.stacks}
        draws["A_2x4.precision"][3, 0, 1] = 1e9
        query, value = effective_ranks(model, draws).values()
        close(query.double(), torch.full((7,), 2.0).index_fill(0, torch.tensor([3]), 1.0).double(), 1e-6)
        close(value.double(), torch.full((7,), 2.0).double(), 1e-6)
        with pytest.raises(ValueError, match=r"draw them with Posterior\.sample"):
            effective_ranks(model)

    def test_without_such_a_prior(self):
        with pytest.raises(ValueError, match="give some of them ArdPrior"):
            effective_ranks(moved_model("gaussian"))

    @pytest.mark.parametrize("used", [1, 2])
    def test_is_learned_from_the_data(self, used):
        """Factors are observed with noise, and all but some of their ranks are zero."""
        model = moved_model(ArdPrior())
        guide = MeanFieldGuide(model)
        ranks = (torch.arange(RANK) < used).double()
        truth = {
            stack.name: (ranks[:, None] if stack.role == "A" else ranks).expand(len(stack), *stack.shape)
            for stack in model.stacks
        }

        def observed():
            for name, weights in model.sample_weights().items():
                pyro.sample(f"y_{name}", dist.Normal(weights, 0.05).to_event(3), obs=truth[name])

        optimizer = torch.optim.Adam([*model.priors.parameters(), *guide.parameters()], lr=0.1)
        for _ in range(150):
            optimizer.zero_grad()
            PartsELBO().differentiable_loss(observed, guide).backward()
            optimizer.step()
        for rank in effective_ranks(model).values():
            close(rank, float(used), 0.1)
