"""The likelihoods against loops over items, options and tokens."""

from types import SimpleNamespace

import pyro.poutine as poutine
import pytest
import torch

from bayeslora_pyro.models import LIKELIHOODS, BayesianLora, Choice, Classification, NextToken, Regression

from .tiny import tiny_batch, tiny_bert, tiny_llama

pytestmark = pytest.mark.usefixtures("local_parameters")

ANSWERS = (5, 7, 9)


def pad_left(batch):
    """Moves the padding of each row to its beginning."""
    order = batch["attention_mask"].argsort(dim=-1, stable=True)
    by_token = {name: value for name, value in batch.items() if value.dim() == 2}
    return batch | {name: value.gather(-1, order) for name, value in by_token.items()}


def classification(outputs, batch):
    return [row.log_softmax(-1)[label] for row, label in zip(outputs.logits, batch["labels"], strict=True)]


def label_tokens(outputs, batch):
    terms = []
    for row, mask, label in zip(outputs.logits, batch["attention_mask"], batch["labels"], strict=True):
        last = int(mask.nonzero().max())
        terms.append(row[last, list(ANSWERS)].log_softmax(-1)[label])
    return terms


def option_scores(outputs, batch, item, normalise):
    scores = []
    for row in (batch["item"] == item).nonzero().flatten():
        where = batch["option_mask"][row].nonzero().flatten()
        log_probs = outputs.logits[row].log_softmax(-1)
        score = sum(log_probs[place - 1, batch["input_ids"][row, place]] for place in where)
        scores.append(score / len(where) if normalise else score)
    return torch.stack(scores)


def options(outputs, batch, normalise=False):
    return [
        option_scores(outputs, batch, item, normalise).log_softmax(-1)[label]
        for item, label in enumerate(batch["labels"])
    ]


def normalised_options(outputs, batch):
    return options(outputs, batch, normalise=True)


def next_token(outputs, batch):
    return [
        sum(
            row[place].log_softmax(-1)[labels[place + 1]]
            for place in range(len(labels) - 1)
            if labels[place + 1] >= 0
        )
        for row, labels in zip(outputs.logits, batch["labels"], strict=True)
    ]


def learned_noise(outputs, batch):
    normal = torch.distributions.Normal(outputs.logits[:, 0], torch.tensor(0.5).double())
    return list(normal.log_prob(batch["labels"]))


def predicted_noise(outputs, batch):
    scale = torch.nn.functional.softplus(outputs.logits[:, 1]) + 1e-6
    return list(torch.distributions.Normal(outputs.logits[:, 0], scale).log_prob(batch["labels"]))


# The likelihood and its options, its batch, the number of outputs of a head (None for a language model), the truth.
CASES = {
    "classification": (Classification, {}, "classification", 3, classification),
    "label tokens": (Choice, {"label_tokens": ANSWERS}, "choice", None, label_tokens),
    "options": (Choice, {}, "options", None, options),
    "options by length": (Choice, {"length_normalised": True}, "options", None, normalised_options),
    "next token": (NextToken, {}, "next_token", None, next_token),
    "regression": (Regression, {"scale": 0.5}, "regression", 1, learned_noise),
    "regression with predicted noise": (Regression, {"noise": "predicted"}, "regression", 2, predicted_noise),
}


def make(name, num_data=5):
    likelihood, arguments, kind, num_labels, truth = CASES[name]
    peft_model = tiny_llama(num_labels=num_labels, dtype=torch.float64)
    return (
        BayesianLora(peft_model, "point", likelihood(**arguments), num_data).double(),
        tiny_batch(kind),
        truth,
    )


def plain_outputs(model, batch):
    return model.adapter.peft_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])


def log_likelihood(model, batch):
    trace = poutine.trace(model).get_trace(batch)
    return trace.log_prob_sum(lambda name, site: site["is_observed"])


def check_log_likelihood(model, batch, truth):
    terms = torch.stack(truth(plain_outputs(model, batch), batch))
    torch.testing.assert_close(log_likelihood(model, batch), terms.sum(), rtol=1e-7, atol=1e-7)


def test_table_is_covered():
    assert {case[0] for case in CASES.values()} == set(LIKELIHOODS.values())


@pytest.mark.parametrize("name", CASES)
class TestEveryLikelihood:
    def test_log_likelihood_is_the_loop_over_items(self, name):
        check_log_likelihood(*make(name))

    def test_padding_on_the_left(self, name):
        model, batch, truth = make(name)
        check_log_likelihood(model, pad_left(batch), truth)

    def test_is_scaled_to_the_data_set(self, name):
        (model, batch, truth), (larger, _, _) = make(name), make(name, num_data=50)
        torch.testing.assert_close(log_likelihood(larger, batch), 10 * log_likelihood(model, batch))
        with pytest.raises(AssertionError):
            check_log_likelihood(larger, batch, truth)

    def test_labels_of_other_items_would_be_caught(self, name):
        model, batch, truth = make(name)
        moved = batch | {"labels": batch["labels"].roll(1, 0)}
        with pytest.raises(AssertionError):
            check_log_likelihood(model, moved, lambda outputs, _: truth(outputs, batch))

    def test_tiles_are_draws(self, name):
        model, batch, _ = make(name)
        weights = model.lora_weights()
        draws = {key: torch.stack([value, 2 * value, 0 * value]) for key, value in weights.items()}
        together = model.likelihood.distribution(model.run_with(draws, batch), batch)
        observed = model.likelihood.observed(batch)
        for index in range(3):
            single = {key: value[index] for key, value in draws.items()}
            alone = model.likelihood.distribution(model.run_with(single, batch), batch)
            assert alone.batch_shape == (5,)
            torch.testing.assert_close(together.log_prob(observed)[index], alone.log_prob(observed))
        assert together.batch_shape == (3, 5)
        assert together.event_shape == alone.event_shape

    def test_samples_what_is_not_observed(self, name):
        model, batch, _ = make(name)
        shape = model.likelihood.observed(batch).shape
        del batch["labels"]
        assert model.likelihood.observed(batch) is None
        assert model(batch).shape == shape

    def test_config_makes_it_again(self, name):
        likelihood, arguments = CASES[name][:2]
        config = likelihood(**arguments).config()
        assert arguments.items() <= config.items()
        assert likelihood(**config).config() == config

    def test_half_precision_is_scored_in_single(self, name):
        model, batch, _ = make(name)
        half = model.run_with(model.lora_weights(), batch).logits.bfloat16()
        observed, likelihood = model.likelihood.observed(batch), model.likelihood.float()
        scores = [
            likelihood.distribution(SimpleNamespace(logits=logits), batch).log_prob(observed)
            for logits in (half, half.float())
        ]
        torch.testing.assert_close(*scores, rtol=0, atol=0)


class TestChoice:
    def test_items_with_different_numbers_of_options(self):
        model, batch, truth = make("options")
        keep = torch.tensor([0, 1, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14])  # items 0 and 2 have two
        ragged = batch | {
            name: batch[name][keep] for name in ("input_ids", "attention_mask", "option_mask", "item")
        }
        ragged["labels"] = batch["labels"].clamp(max=1)
        check_log_likelihood(model, ragged, truth)
        probs = model.likelihood.distribution(model.run_with(model.lora_weights(), ragged), ragged).probs
        assert probs.shape == (5, 3)
        assert probs[:, 2].tolist().count(0.0) == 2

    @pytest.mark.parametrize("name", ["label tokens", "options"])
    @pytest.mark.parametrize("padded", [pad_left, lambda batch: batch])
    def test_runs_the_head_on_the_last_tokens_only(self, name, padded):
        model, batch, _ = make(name)
        longer = {
            key: torch.cat([torch.full_like(value, key != "option_mask"), value], -1)
            for key, value in batch.items()
            if value.dim() == 2
        }
        outputs = model.run_with(model.lora_weights(), padded(batch | longer))
        assert outputs.logits.shape[1] <= batch["input_ids"].shape[1]


class TestNextToken:
    def test_tokens_without_a_label_do_not_count(self):
        model, batch, truth = make("next token")
        batch["labels"] = batch["labels"].clone()
        batch["labels"][:, :2] = -100
        check_log_likelihood(model, batch, truth)

    def test_without_labels_padding_does_not_count(self):
        model, batch, _ = make("next token")
        with_labels = model.likelihood.distribution(plain_outputs(model, batch), batch)
        observed = model.likelihood.observed(batch)
        del batch["labels"]
        without = model.likelihood.distribution(plain_outputs(model, batch), batch)
        torch.testing.assert_close(without.log_prob(observed), with_labels.log_prob(observed))


class TestErrors:
    @pytest.mark.parametrize("labels", [[0, 1, 2, 3, 0], [0, -1, 0, 0, 0]])
    def test_labels_out_of_range(self, labels):
        model, batch, _ = make("classification")
        with pytest.raises(ValueError, match=r"there are 3 classes: they should lie in 0 … 2"):
            model(batch | {"labels": torch.tensor(labels)})

    @pytest.mark.parametrize(("noise", "num_labels"), [("learned", 2), ("predicted", 1)])
    def test_head_of_another_size(self, noise, num_labels):
        model = BayesianLora(tiny_bert(num_labels=num_labels), "point", Regression(noise))
        with pytest.raises(ValueError, match=f"head has {num_labels} outputs"):
            model(tiny_batch("regression"))

    def test_unknown_noise(self):
        with pytest.raises(ValueError, match="noise should be 'learned' or 'predicted', and is 'fixed'"):
            Regression("fixed")

    def test_scale(self):
        with pytest.raises(ValueError, match="scale should be positive, and is 0"):
            Regression(scale=0)

    def test_unknown_name(self):
        with pytest.raises(ValueError, match="likelihood='poisson' is not known"):
            BayesianLora(tiny_bert(), "point", "poisson")

    def test_no_data(self):
        with pytest.raises(ValueError, match="num_data should be the number of training items, and is 0"):
            BayesianLora(tiny_bert(), "point", num_data=0)


def test_learned_noise_is_a_parameter_of_each_model():
    likelihood = Regression(scale=0.5)
    first, second = (BayesianLora(tiny_bert(num_labels=1), "point", likelihood) for _ in range(2))
    first.likelihood.scale = torch.tensor(2.0)
    scales = [own.scale.item() for own in (first.likelihood, second.likelihood, likelihood)]
    assert scales == pytest.approx([2, 0.5, 0.5])
    assert "likelihood.scale_unconstrained" in dict(first.named_parameters())


@pytest.mark.parametrize("length_normalised", [False, True])
def test_option_without_a_token_is_refused(length_normalised):
    batch = {
        "input_ids": torch.zeros(2, 4, dtype=torch.long),
        "attention_mask": torch.ones(2, 4, dtype=torch.long),
        "option_mask": torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]]),
        "item": torch.tensor([0, 0]),
    }
    outputs = SimpleNamespace(logits=torch.zeros(2, 4, 5))
    with pytest.raises(ValueError, match="option_mask has an option without a token"):
        Choice(length_normalised=length_normalised).distribution(outputs, batch)
