"""The same model and guide under other people's training loops: Transformers' Trainer, Accelerate, plain DDP."""

from bayeslora_pyro.adapters import shard_base as shard_base
from bayeslora_pyro.training.objective import Objective as Objective
from bayeslora_pyro.training.trainer import ElboTrainer as ElboTrainer

__all__ = ["ElboTrainer", "Objective", "shard_base"]
