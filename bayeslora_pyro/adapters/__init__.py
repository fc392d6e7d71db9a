"""PEFT models seen as stacks of LoRA factors: the only importer of peft."""

from bayeslora_pyro.adapters.adapter import Adapter as Adapter
from bayeslora_pyro.adapters.build import add_lora as add_lora
from bayeslora_pyro.adapters.folders import fingerprint as fingerprint
from bayeslora_pyro.adapters.folders import load_peft_model as load_peft_model
from bayeslora_pyro.adapters.folders import write_folder as write_folder
from bayeslora_pyro.adapters.slots import LinearOperator as LinearOperator
from bayeslora_pyro.adapters.slots import Operator as Operator

__all__ = ["Adapter", "LinearOperator", "Operator", "add_lora", "fingerprint", "load_peft_model", "write_folder"]
