"""The real packages: their counts, a sentence embedded by MiniLM, a question answered by SmolLM2."""

import pytest
import torch

from bayeslora_pyro.tasks import (
    TASKS,
    Examples,
    label_token_ids,
    load_base_model,
    load_task,
    make_loader,
    split,
)

COUNTS = {
    "sentiment": (10_043, 4_982),
    "amazon": (2_943, 1_725),
    "nyt": (2_788, 1_100),
    "tweets": (3_362, 2_300),
}


@pytest.mark.parametrize("name", COUNTS)
def test_binary_sentiment(name):
    examples = load_task(name)
    assert (len(examples), sum(examples.labels)) == COUNTS[name]
    assert all(text.strip() for text in examples.texts)


@pytest.mark.parametrize(
    ("name", "count", "unknown"),
    [
        ("sentiment-regression", 10_605, 0),
        ("sentiment-regression/amazon", 3_708, 0),
        ("sentiment-regression/nyt", 5_190, 0),
        ("sentiment-regression/tweets", 4_200, 199),
    ],
)
def test_sentiment_regression(name, count, unknown):
    examples = load_task(name)
    assert len(examples) == len(examples.deviations) == count
    assert sum(value != value for value in examples.deviations) == unknown
    assert all(-4 <= target <= 4 for target in examples.targets)


def test_demo_split():
    cuts = [split(load_task("sentiment"), train=400, tuning=400, test=1000, seed=seed) for seed in range(3)]
    assert len({cut.test for cut in cuts}) == len({cut.tuning for cut in cuts}) == 1
    assert len({cut.train for cut in cuts}) == 3
    for cut in cuts:
        assert [len(cut.train), len(cut.tuning), len(cut.test)] == [400, 400, 1000]
        assert not {*cut.train.texts} & {*cut.tuning.texts, *cut.test.texts}
        assert 0.45 < sum(cut.test.labels) / 1000 < 0.55
    for shift in TASKS["sentiment"].shifts:
        test = split(load_task(shift), train=0, tuning=0, test=600, seed=0).test
        assert len(test) == 600
        assert not {*test.texts} & {*cuts[0].train.texts}


@torch.no_grad()
def test_minilm_embeds():
    model, tokenizer = load_base_model("minilm", task_type="classification", num_labels=2)
    assert sum(parameter.numel() for parameter in model.base_model.parameters()) == 22_713_216
    texts = ("a wonderful film", "a marvellous movie", "the tax form is due on Monday")
    examples = Examples("three", "classification", texts, labels=(0, 0, 1), classes=("a", "b"))
    (batch,) = make_loader(examples, tokenizer, batch_size=3, shuffle=False)
    assert model(**batch).logits.shape == (3, 2)
    del batch["labels"]
    states, mask = model.base_model(**batch).last_hidden_state, batch["attention_mask"][..., None]
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    similarity = means @ means.mT
    assert similarity[0, 1] > 0.7 > 0.3 > similarity[0, 2]


@torch.no_grad()
def test_smollm2_scores_options():
    state = torch.get_rng_state()
    model, tokenizer = load_base_model("smollm2", task_type="choice")
    assert torch.equal(torch.get_rng_state(), state)
    assert not getattr(model, "is_quantized", False)
    assert all(
        parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters()
    )
    examples = Examples(
        "two",
        "choice",
        ("What is the capital of France?", "Which animal barks?"),
        labels=(2, 0),
        choices=(("Berlin", "a small green stone", "Paris"), ("a dog", "a purple teapot")),
    )
    (batch,) = make_loader(examples, tokenizer, batch_size=2, shuffle=False)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    chosen = logits.log_softmax(-1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    scores = (chosen * batch["option_mask"][:, 1:]).sum(-1)
    assert [scores[batch["item"] == item].argmax().item() for item in range(2)] == [2, 0]
    assert len(set(label_token_ids(tokenizer, 26))) == 26
