"""Every prior of the table with small sizes, those that an argument changes in kind, and a small model for them."""

import pyro
import torch

from bayeslora_pyro.models import (
    ArdPrior,
    BayesianLora,
    GaussianPrior,
    GlobalInducingPrior,
    HorseshoePrior,
    InducingPrior,
    LaplacePrior,
    MatrixNormalPrior,
    PointPrior,
    RankSpacePrior,
    RelativeNoisePrior,
)

from .exact import perturb
from .tiny import tiny_bert

RANK, HIDDEN = 2, 4

SMALL = {
    "inducing": lambda: InducingPrior(2, 3),
    "global_inducing": lambda: GlobalInducingPrior(2, 3, num_shared=2),
    "gaussian": GaussianPrior,
    "matrix_normal": MatrixNormalPrior,
    "ard": ArdPrior,
    "laplace": LaplacePrior,
    "horseshoe": HorseshoePrior,
    "rank_space": RankSpacePrior,
    "point": PointPrior,
    "relative_noise": RelativeNoisePrior,
}

VARIANTS = {
    "inducing, random scale": lambda: InducingPrior(2, 3, scale_prior=0.5),
    "inducing, plain": lambda: InducingPrior(2, 3, whitened=False, nugget=0.3),
    "global inducing, random scale": lambda: GlobalInducingPrior(2, 3, scale_prior=0.5),
    "ard, random precisions": lambda: ArdPrior(concentration=3.0),
    "matrix normal, one per factor": lambda: MatrixNormalPrior(shared=False),
}

ALL = SMALL | VARIANTS


def small_model(prior, *, hidden=HIDDEN, **options):
    """A model of one layer in float64."""
    peft_model = tiny_bert(rank=RANK, hidden=hidden, num_layers=1, dtype=torch.float64, **options)
    return BayesianLora(peft_model, prior, num_data=10)


def moved_model(prior, **options):
    """The same, whose prior has moved from its start."""
    model = small_model(prior, **options)
    perturb(model.priors, seed=0)
    return model


def draw(model, stack):
    """The weights of a stack, drawn from the prior."""
    with pyro.plate(stack.name, len(stack)):
        return model.prior_of(stack).sample_weights(stack)
