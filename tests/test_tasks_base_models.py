"""Base models load quietly, with a seeded head, and leave every global state as it was."""

from types import SimpleNamespace

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from bayeslora_pyro.tasks import (
    PACKAGED_MODELS,
    base_models,
    default_target_modules,
    faster_dtype,
    load_base_model,
)

SIZES = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 12,
    "max_position_embeddings": 16,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "[PAD]", "[EOS]", "one", "two"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = {
            "encoder": BertModel(BertConfig(**SIZES)),
            "classifier": BertForSequenceClassification(BertConfig(**SIZES, num_labels=3)),
            "decoder": LlamaForCausalLM(LlamaConfig(**SIZES, bos_token_id=2, eos_token_id=2)),
        }
    for name, model in made.items():
        tokens = {"eos_token": "[EOS]"} if name == "decoder" else {"pad_token": "[PAD]"}
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", **tokens)
        with base_models._quiet(bars=False):
            model.save_pretrained(root / name)
        fast.save_pretrained(root / name)
    return root


CASES = [
    ("encoder", "classification", 2, (2, 8)),
    ("encoder", "regression", None, (1, 8)),
    ("encoder", "regression", 2, (2, 8)),
    ("decoder", "classification", 5, (5, 8)),
    ("decoder", "choice", None, (12, 8)),
    ("decoder", "next_token", None, (12, 8)),
]


def head_of(model):
    return next(
        getattr(model, name) for name in ("classifier", "score", "lm_head") if hasattr(model, name)
    ).weight


@pytest.mark.parametrize(("name", "task_type", "num_labels", "shape"), CASES)
def test_load_is_quiet_seeded_and_leaves_no_trace(folders, capfd, name, task_type, num_labels, shape):
    state, verbosity, bars = torch.get_rng_state(), logging.get_verbosity(), logging.is_progress_bar_enabled()
    loaded = [
        load_base_model(str(folders / name), task_type=task_type, num_labels=num_labels, seed=seed)
        for seed in (0, 0, 1)
    ]
    first, again, other = (head_of(model) for model, _ in loaded)
    assert first.shape == shape
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (task_type in ("choice", "next_token"))
    assert all(not model.training for model, _ in loaded)
    assert torch.equal(torch.get_rng_state(), state)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (verbosity, bars)
    assert capfd.readouterr() == ("", "")


def test_padding_token_is_set_on_both(folders):
    model, tokenizer = load_base_model(str(folders / "decoder"), task_type="classification", num_labels=2)
    assert tokenizer.pad_token == "[EOS]"
    assert model.config.pad_token_id == tokenizer.pad_token_id == 2
    batch = {"input_ids": torch.tensor([[3, 4], [3, 2]]), "attention_mask": torch.tensor([[1, 1], [1, 0]])}
    assert model(**batch).logits.shape == (2, 2)


def test_dtype(folders):
    for dtype in (None, torch.bfloat16, torch.float64):
        model, _ = load_base_model(str(folders / "decoder"), task_type="choice", dtype=dtype)
        assert model.dtype == (dtype or torch.float32)


def test_a_trained_head_is_kept(folders):
    trained = BertForSequenceClassification.from_pretrained(folders / "classifier")
    loaded, _ = load_base_model(str(folders / "classifier"), task_type="classification", num_labels=3, seed=7)
    assert torch.equal(head_of(loaded), head_of(trained))


def test_checkpoint_that_lacks_more_than_a_head_warns(folders, tmp_path):
    model = BertModel.from_pretrained(folders / "encoder")
    state = {name: value for name, value in model.state_dict().items() if "attention" not in name}
    with base_models._quiet(bars=False):
        model.save_pretrained(tmp_path, state_dict=state)
    transformers.AutoTokenizer.from_pretrained(folders / "encoder").save_pretrained(tmp_path)
    with pytest.warns(
        UserWarning, match=r"lacks \d+ parameters \(bert.encoder.layer.0.attention.* architecture\?"
    ):
        load_base_model(str(tmp_path), task_type="classification", num_labels=2)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "minilm",
            {"task_type": "choice"},
            r"'minilm' \(MiniLM-L6.* has no head for task_type='choice': use 'smollm2'",
        ),
        ("smollm2", {"task_type": "choice", "num_labels": 4}, "num_labels=4 does not fit task_type='choice'"),
        ("minilm", {"task_type": "classification"}, "num_labels=None is no number of classes: use 2 or more"),
        ("minilm", {"task_type": "classification", "num_labels": 1}, "num_labels=1"),
        ("minilm", {"task_type": "regression", "num_labels": 0}, "num_labels=0 is no number of outputs"),
        ("minilm", {"task_type": "clustering"}, "task_type='clustering' is unknown: use classification"),
    ],
)
def test_arguments_that_do_not_fit(name, options, message):
    with pytest.raises(ValueError, match=message):
        load_base_model(name, **options)


def test_model_that_is_nowhere(monkeypatch):
    def fail(*args, **options):
        raise OSError("We couldn't connect")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(
        OSError, match=r"cannot load the base model 'org/none': We couldn't connect\nUse a packaged"
    ):
        load_base_model("org/none", task_type="choice")


def test_folder_without_a_model(tmp_path):
    with pytest.raises(OSError, match="cannot load the base model"):
        load_base_model(str(tmp_path), task_type="choice")


def test_tokenizer_that_cannot_pad(folders, tmp_path):
    model, tokenizer = load_base_model(str(folders / "decoder"), task_type="choice")
    for name in ("pad_token", "eos_token", "unk_token"):
        setattr(tokenizer, name, None)
    with base_models._quiet(bars=False):
        model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no token to pad with"):
        load_base_model(str(tmp_path), task_type="choice")


def test_conversion_without_gguf(monkeypatch, tmp_path):
    monkeypatch.setenv("BAYESLORA_CACHE", str(tmp_path))
    monkeypatch.setattr(base_models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install gguf"):
        load_base_model("smollm2", task_type="choice")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"model.safetensors": "0"}'])
def test_damaged_conversion_is_not_used(tmp_path, manifest):
    (tmp_path / "digests.json").write_text(manifest)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert not base_models._is_converted(tmp_path)


def test_default_target_modules():
    assert default_target_modules("minilm") == ["query", "value"]
    assert default_target_modules("smollm2") == ["q_proj", "v_proj"]
    assert default_target_modules("some/other") is None
    assert all(row.about and row.task_types for row in PACKAGED_MODELS.values())


@pytest.mark.parametrize(
    ("slower", "faster"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)]
)
def test_the_faster_dtype_is_the_one_whose_products_take_less_time(slower, faster, monkeypatch):
    clock = [0.0]

    def product(left, right):
        clock[0] += 2.0 if left.dtype == slower else 1.0

    monkeypatch.setattr(torch, "mm", product)
    monkeypatch.setattr("bayeslora_pyro.tasks.dtypes.time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert faster_dtype(repeats=3) == faster
