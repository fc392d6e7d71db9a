"""PEFT models seen as stacks of LoRA factors: the only importer of peft."""

from bayeslora_pyro.adapters.adapter import Adapter as Adapter
from bayeslora_pyro.adapters.bases import describe_base as describe_base
from bayeslora_pyro.adapters.bases import unchanged_on_failure as unchanged_on_failure
from bayeslora_pyro.adapters.build import add_lora as add_lora
from bayeslora_pyro.adapters.folders import PEFT_CONFIG as PEFT_CONFIG
from bayeslora_pyro.adapters.folders import PEFT_TENSORS as PEFT_TENSORS
from bayeslora_pyro.adapters.folders import load_peft_model as load_peft_model
from bayeslora_pyro.adapters.folders import write_folder as write_folder
from bayeslora_pyro.adapters.operators import FlipoutOperator as FlipoutOperator
from bayeslora_pyro.adapters.operators import Flips as Flips
from bayeslora_pyro.adapters.operators import LinearOperator as LinearOperator
from bayeslora_pyro.adapters.operators import Operator as Operator
from bayeslora_pyro.adapters.operators import draw_flips as draw_flips
from bayeslora_pyro.adapters.operators import make_operators as make_operators

__all__ = [
    "PEFT_CONFIG",
    "PEFT_TENSORS",
    "Adapter",
    "FlipoutOperator",
    "Flips",
    "LinearOperator",
    "Operator",
    "add_lora",
    "describe_base",
    "draw_flips",
    "load_peft_model",
    "make_operators",
    "unchanged_on_failure",
    "write_folder",
]
