"""PEFT models seen as stacks of LoRA factors: the only importer of peft."""

from bayeslora_pyro.adapters.adapter import Adapter as Adapter
from bayeslora_pyro.adapters.bases import check_base as check_base
from bayeslora_pyro.adapters.bases import describe_base as describe_base
from bayeslora_pyro.adapters.bases import unchanged_on_failure as unchanged_on_failure
from bayeslora_pyro.adapters.blocks import compiled_blocks as compiled_blocks
from bayeslora_pyro.adapters.build import add_lora as add_lora
from bayeslora_pyro.adapters.dropout import Dropout as Dropout
from bayeslora_pyro.adapters.dropout import DropoutOperator as DropoutOperator
from bayeslora_pyro.adapters.features import FEATURES as FEATURES
from bayeslora_pyro.adapters.features import Features as Features
from bayeslora_pyro.adapters.features import num_features as num_features
from bayeslora_pyro.adapters.features import pooled_features as pooled_features
from bayeslora_pyro.adapters.flipout import Flipout as Flipout
from bayeslora_pyro.adapters.flipout import FlipoutOperator as FlipoutOperator
from bayeslora_pyro.adapters.folders import PEFT_CONFIG as PEFT_CONFIG
from bayeslora_pyro.adapters.folders import PEFT_TENSORS as PEFT_TENSORS
from bayeslora_pyro.adapters.folders import load_peft_model as load_peft_model
from bayeslora_pyro.adapters.folders import write_folder as write_folder
from bayeslora_pyro.adapters.noise import FreshNoise as FreshNoise
from bayeslora_pyro.adapters.noise import KeyedNoise as KeyedNoise
from bayeslora_pyro.adapters.noise import Noise as Noise
from bayeslora_pyro.adapters.noise import NoiseScope as NoiseScope
from bayeslora_pyro.adapters.noise import NoisyOperator as NoisyOperator
from bayeslora_pyro.adapters.operators import LinearOperator as LinearOperator
from bayeslora_pyro.adapters.operators import Operator as Operator
from bayeslora_pyro.adapters.operators import PerItem as PerItem
from bayeslora_pyro.adapters.operators import make_operators as make_operators
from bayeslora_pyro.adapters.operators import varying as varying
from bayeslora_pyro.adapters.packing import packs as packs
from bayeslora_pyro.adapters.prefix import NotPlainError as NotPlainError
from bayeslora_pyro.adapters.prefix import Prefix as Prefix
from bayeslora_pyro.adapters.sharding import gathered as gathered
from bayeslora_pyro.adapters.sharding import shard_base as shard_base
from bayeslora_pyro.adapters.tiles import tiled_rows as tiled_rows
from bayeslora_pyro.adapters.trained import load_lora as load_lora

__all__ = [
    "FEATURES",
    "PEFT_CONFIG",
    "PEFT_TENSORS",
    "Adapter",
    "Dropout",
    "DropoutOperator",
    "Features",
    "Flipout",
    "FlipoutOperator",
    "FreshNoise",
    "KeyedNoise",
    "LinearOperator",
    "Noise",
    "NoiseScope",
    "NoisyOperator",
    "NotPlainError",
    "Operator",
    "PerItem",
    "Prefix",
    "add_lora",
    "check_base",
    "compiled_blocks",
    "describe_base",
    "gathered",
    "load_lora",
    "load_peft_model",
    "make_operators",
    "num_features",
    "packs",
    "pooled_features",
    "shard_base",
    "tiled_rows",
    "unchanged_on_failure",
    "varying",
    "write_folder",
]
