"""Every prior of the table with small sizes, and those that an argument changes in kind."""

from bayeslora_pyro.models import (
    ArdPrior,
    GaussianPrior,
    GlobalInducingPrior,
    HorseshoePrior,
    InducingPrior,
    LaplacePrior,
    MatrixNormalPrior,
    PointPrior,
    RankSpacePrior,
)

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
}

VARIANTS = {
    "inducing, random scale": lambda: InducingPrior(2, 3, scale_prior=0.5),
    "inducing, plain": lambda: InducingPrior(2, 3, whitened=False, nugget=0.3),
    "global inducing, random scale": lambda: GlobalInducingPrior(2, 3, scale_prior=0.5),
    "ard, random precisions": lambda: ArdPrior(concentration=3.0),
    "matrix normal, one per factor": lambda: MatrixNormalPrior(shared=False),
}

ALL = SMALL | VARIANTS
