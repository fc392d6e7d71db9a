"""Base models in 8 or 4 bits."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import nn
from transformers import BitsAndBytesConfig

__all__ = ["Quantization", "check_quantization", "keep_differentiable", "quantized"]

Quantization: TypeAlias = Literal["8bit", "4bit"]
"""In how many bits the linear layers of a base model are kept."""


def quantized(
    quantization: Quantization, dtype: torch.dtype | None = None, heads: Iterable[str] = ()
) -> dict[str, Any]:
    """Returns what `from_pretrained` needs to load a model in 8 or 4 bits.

    4 bits are NF4, whose levels are the quantiles of a normal distribution, with a scale for each block of 64 weights.

    Args:
        quantization: `"8bit"` or `"4bit"`.
        dtype: The dtype of the products in 4 bits; None for bfloat16.
        heads: The names of modules that keep their precision beside `lm_head`: a head that is trained needs it.

    References:
        | LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale (Dettmers et al., 2022)
        | https://arxiv.org/abs/2208.07339
        | QLoRA: Efficient Finetuning of Quantized LLMs (Dettmers et al., 2023), Section 3
        | https://arxiv.org/abs/2305.14314
    """
    check_quantization(quantization)
    options: dict[str, Any] = {"load_in_8bit": True}  # whose skipped modules are those of 4 bits too
    if quantization == "4bit":
        options = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": dtype or torch.bfloat16,
        }
    kept = sorted({"lm_head", *heads})
    place = {"": torch.cuda.current_device()} if torch.cuda.is_available() else "cpu"
    make_config: Any = BitsAndBytesConfig  # untyped
    return {"quantization_config": make_config(**options, llm_int8_skip_modules=kept), "device_map": place}


def check_quantization(quantization: str) -> None:
    """Checks that a model can be loaded so.

    Raises:
        ValueError: If it is neither `"8bit"` nor `"4bit"`.
        ImportError: If bitsandbytes is not installed.
    """
    if quantization not in get_args(Quantization):
        raise ValueError(
            f"quantization={quantization!r} is unknown: use '8bit' or '4bit', or None for neither"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            f"quantization={quantization!r} needs bitsandbytes: pip install 'bayeslora-pyro[quantization]'"
        )


def keep_differentiable(model: nn.Module) -> None:
    """Has bitsandbytes leave 4-bit weights as they are on a processor.

    It would lay them out anew in the first prediction, for a product that gradients do not pass, so that a fit after a
    prediction would go wrong.
    """
    for part in model.modules():
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
