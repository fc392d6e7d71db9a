"""Batches equal those of Hugging Face collators, and option masks give the scores of brute force."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from bayeslora_pyro.tasks import Examples, encoding, label_token_ids, make_loader

QUESTIONS = ("Why does it rain?", "Who?", "What is the hottest star of them all, seen from the ground?")
CHOICES = (
    ("clouds", "because of the sun"),
    ("me", "you", "no one at all"),
    ("Sirius", "Rigel", "Deneb", "x"),
)
CORPUS = [*QUESTIONS, *[c for some in CHOICES for c in some], "Question: Answer: A. B. C. D.\n A B C D E"]


def make_tokenizer(bos=False, eos=False, side="right", pad=True):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    template = " ".join((["<s>"] if bos else []) + ["$A"] + (["</s>"] if eos else []))
    if bos or eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[(name, tokenizer.token_to_id(name)) for name in special]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        padding_side=side,
        model_max_length=512,
        **({"pad_token": "<pad>"} if pad else {}),
    )


def make_texts(kind="classification", size=11):
    texts = tuple(
        " ".join(CORPUS[i % len(CORPUS)] for i in range(1 + 7 * k % 5)) + f" {k}" for k in range(size)
    )
    fields = {
        "classification": {"labels": tuple(k % 3 for k in range(size)), "classes": ("a", "b", "c")},
        "regression": {"targets": tuple(k / 7 for k in range(size))},
        "text": {},
    }[kind]
    return Examples("made up", kind, texts, **fields)


def make_questions():
    return Examples("made up", "choice", QUESTIONS, labels=(1, 0, 3), choices=CHOICES)


def equal(batch, reference):
    return batch.keys() == reference.keys() and all(
        torch.equal(batch[name], reference[name]) and batch[name].dtype == reference[name].dtype
        for name in batch
    )


@pytest.mark.parametrize("kind", ["classification", "regression", "text"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("max_length", [8, 128])
def test_batches_equal_those_of_a_hugging_face_collator(kind, side, max_length):
    tokenizer = make_tokenizer(bos=True, side=side)
    examples = make_texts(kind)
    labels = examples.labels or examples.targets
    features = [
        {
            **tokenizer(text, truncation=True, max_length=max_length),
            **({"labels": labels[i]} if labels else {}),
        }
        for i, text in enumerate(examples.texts)
    ]
    tokenizer.deprecation_warnings["Asking-to-pad-a-fast-tokenizer"] = True
    collate = (
        DataCollatorForLanguageModeling(tokenizer, mlm=False)
        if kind == "text"
        else DataCollatorWithPadding(tokenizer)
    )
    loader = make_loader(examples, tokenizer, batch_size=4, shuffle=False, max_length=max_length)
    batches = list(loader)
    assert [len(batch["labels"]) for batch in batches] == [4, 4, 3]
    for start, batch in zip((0, 4, 8), batches, strict=True):
        assert equal(batch, dict(collate(features[start : start + 4])))


def test_shuffling_follows_the_seed_and_leaves_the_global_state_alone():
    examples, tokenizer = make_texts(size=40), make_tokenizer()
    state = torch.get_rng_state()

    def order(seed, shuffle=True, epochs=2):
        loader = make_loader(examples, tokenizer, batch_size=7, shuffle=shuffle, seed=seed)
        rows = [
            [tuple(row.tolist()) for batch in loader for row in batch["labels"][:, None]]
            for _ in range(epochs)
        ]
        return rows

    torch.manual_seed(1)
    first = order(0)
    torch.manual_seed(2)
    assert order(0) == first  # the loader's own generator decides
    assert first[0] != first[1]
    assert order(1) != first
    assert order(0, shuffle=False)[0] == [(label,) for label in examples.labels]
    torch.set_rng_state(state)
    order(0), order(0, shuffle=False)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "examples", [make_texts(), make_questions().select([0, 2, 1] * 3)], ids=["sequence", "options"]
)
def test_grouping_by_length_saves_padding_and_keeps_labels_with_texts(examples):
    tokenizer = make_tokenizer()
    plain, grouped = (
        make_loader(examples, tokenizer, batch_size=2, shuffle=False, group_by_length=flag)
        for flag in (False, True)
    )
    padding = [
        sum(int((batch["attention_mask"] == 0).sum()) for batch in loader) for loader in (plain, grouped)
    ]
    assert padding[1] < padding[0]
    labels = torch.cat([batch["labels"] for batch in grouped]).tolist()
    assert labels == [examples.labels[item] for item in grouped.sampler]
    assert sorted(grouped.sampler) == list(range(len(examples)))
    widths = [batch["input_ids"].shape[1] for batch in grouped]
    assert widths == sorted(widths, reverse=True)


def option_texts(batch, tokenizer):
    masks = batch["option_mask"].bool()
    return [tokenizer.decode(ids[mask]) for ids, mask in zip(batch["input_ids"], masks, strict=True)]


def check_options(batch, tokenizer):
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["option_mask"].shape
    assert batch["item"].tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert batch["labels"].tolist() == [1, 0, 3]
    assert option_texts(batch, tokenizer) == [f" {option}" for options in CHOICES for option in options]
    assert not bool((batch["option_mask"] > batch["attention_mask"]).any())


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("eos", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
def test_options_mark_their_own_tokens(bos, eos, side):
    tokenizer = make_tokenizer(bos, eos, side)
    (batch,) = make_loader(make_questions(), tokenizer, batch_size=3, shuffle=False)
    check_options(batch, tokenizer)
    prompt = tokenizer.decode(
        batch["input_ids"][0][(batch["attention_mask"] - batch["option_mask"])[0].bool()]
    )
    assert prompt == ("<s>" if bos else "") + f"Question: {QUESTIONS[0]}\nAnswer:"


def test_planted_fault_a_mask_one_token_early_is_caught(monkeypatch):
    original = encoding._tokenize

    def shifted(*args):
        ids, first = original(*args)
        return ids, first - 1

    monkeypatch.setattr(encoding, "_tokenize", shifted)
    tokenizer = make_tokenizer()
    (batch,) = make_loader(make_questions(), tokenizer, batch_size=3, shuffle=False)
    with pytest.raises(AssertionError):
        check_options(batch, tokenizer)


def make_decoder(tokenizer, dtype):
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(dtype).eval()


def batched_scores(model, batch):
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    chosen = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    return (chosen * batch["option_mask"][:, 1:]).sum(-1)


def lone_score(model, tokenizer, question, option):
    """The log-likelihood of an option from the conditional of each of its tokens, without mask or padding."""
    prompt = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
    ids = prompt + tokenizer(f" {option}", add_special_tokens=False)["input_ids"]
    score = 0.0
    for place in range(len(prompt), len(ids)):
        logits = model(torch.tensor([ids[:place]])).logits[0, -1]
        score += logits.log_softmax(-1)[ids[place]]
    return score


# The eager attention of a float64 Llama gives NaN where a row begins with padding, hence float32 on the left.
@pytest.mark.parametrize(
    ("side", "dtype", "atol"), [("right", torch.float64, 1e-7), ("left", torch.float32, 1e-4)]
)
@torch.no_grad()
def test_batched_option_scores_equal_brute_force(side, dtype, atol):
    tokenizer = make_tokenizer(bos=True, side=side)
    model = make_decoder(tokenizer, dtype)
    (batch,) = make_loader(make_questions(), tokenizer, batch_size=3, shuffle=False)
    expected = [
        lone_score(model, tokenizer, question, option)
        for question, options in zip(QUESTIONS, CHOICES, strict=True)
        for option in options
    ]
    torch.testing.assert_close(batched_scores(model, batch), torch.stack(expected), rtol=0, atol=atol)


@pytest.mark.parametrize("form", ["options", "label_tokens"])
def test_long_questions_lose_their_start_and_keep_option_and_slot(form):
    tokenizer = make_tokenizer(bos=True)
    loader = make_loader(make_questions(), tokenizer, batch_size=3, shuffle=False, max_length=24, form=form)
    (batch,) = loader
    assert batch["input_ids"].shape[1] == 24
    assert set(batch["input_ids"][:, 0].tolist()) == {tokenizer.bos_token_id}
    if form == "options":
        check_options(batch, tokenizer)
    else:
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
            assert tokenizer.decode(ids[mask.bool()]).endswith("\nAnswer:")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("eos", [False, True])
def test_label_tokens_end_at_the_answer_slot(side, eos):
    tokenizer = make_tokenizer(eos=eos, side=side)
    (batch,) = make_loader(make_questions(), tokenizer, batch_size=3, shuffle=False, form="label_tokens")
    assert batch.keys() == {"input_ids", "attention_mask", "labels"}
    assert batch["labels"].tolist() == [1, 0, 3]
    text = tokenizer.decode(batch["input_ids"][1][batch["attention_mask"][1].bool()])
    assert text == "Question: Who?\nA. me\nB. you\nC. no one at all\nAnswer:"


def test_label_token_ids_are_the_tokens_that_follow_the_slot():
    tokenizer = make_tokenizer(bos=True, eos=True)
    ids = label_token_ids(tokenizer, 4)
    assert [tokenizer.decode([token]) for token in ids] == [" A", " B", " C", " D"]
    slot = tokenizer("Question: Who?\nAnswer:", add_special_tokens=False)["input_ids"]
    for letter, token in zip("ABCD", ids, strict=True):
        whole = tokenizer(f"Question: Who?\nAnswer: {letter}", add_special_tokens=False)["input_ids"]
        assert whole == [*slot, token]
    with pytest.raises(ValueError, match="are not single tokens"):
        label_token_ids(tokenizer, 26)  # " Q" and others are two tokens here
    with pytest.raises(ValueError, match="num_choices=27 has no letters"):
        label_token_ids(tokenizer, 27)


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        (
            make_texts(),
            {"form": "options"},
            "form='options' does not fit classification examples: use 'sequence'",
        ),
        (make_questions(), {"form": "sequence"}, "use 'options' or 'packed' or 'label_tokens'"),
        (make_texts(size=0), {}, "'made up' is empty"),
        (make_texts(), {"batch_size": 0}, "batch_size=0"),
        (make_texts(), {"max_length": 1}, "max_length=1 is out of range: use 2 to 512"),
        (make_texts(), {"max_length": 513}, "max_length=513 is out of range"),
        (make_questions(), {"max_length": 3}, r"max_length=3 leaves no room .* use at least \d+"),
    ],
)
def test_arguments_that_do_not_fit(examples, options, message):
    with pytest.raises(ValueError, match=message):
        make_loader(examples, make_tokenizer(), **{"batch_size": 2, "shuffle": False, **options})


def test_tokenizer_without_padding_token():
    with pytest.raises(ValueError, match=r"tokenizer has no padding token: set tokenizer\.pad_token"):
        make_loader(make_texts(), make_tokenizer(pad=False), batch_size=2, shuffle=False)


def test_shuffled_groups_hold_every_item_once_and_save_padding():
    def epochs(seed):
        loader = make_loader(
            make_texts(size=80), make_tokenizer(), batch_size=4, shuffle=True, group_by_length=True, seed=seed
        )
        return [list(loader.sampler) for _ in range(2)], [sum(b["input_ids"].numel() for b in loader)]

    (first, second), (grouped,) = epochs(0)
    plain = make_loader(make_texts(size=80), make_tokenizer(), batch_size=4, shuffle=True)
    assert sorted(first) == sorted(second) == list(range(80))
    assert first != second
    assert epochs(0)[0] == [first, second]
    assert epochs(1)[0][0] != first
    assert grouped < sum(batch["input_ids"].numel() for batch in plain)
