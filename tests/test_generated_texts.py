"""Generation from texts to texts: tokenizers, majorities, and what is refused."""

import pytest
import torch

from bayeslora_pyro.generation import GenerationByDraw
from bayeslora_pyro.guides import GUIDES, DeltaGuide
from bayeslora_pyro.models import BayesianLora, GaussianPrior, PointPrior
from bayeslora_pyro.posterior import Posterior

from .exact import close
from .test_generation import DRAWS, END, NEW, PAD, posterior_of, prompts
from .tiny import tiny_bert, tiny_llama


class Words:
    """A tokenizer of letters."""

    eos_token_id, pad_token_id = END, PAD

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [3 + (ord(letter) - 97) for letter in text]}

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return "".join(chr(97 + (i - 3)) for i in ids if not (skip_special_tokens and i < 3))


def test_texts_are_those_of_the_tokens() -> None:
    posterior = posterior_of()
    together = posterior.generate(["abc", "q"], DRAWS, tokenizer=Words(), max_new_tokens=NEW)
    ids = {
        "input_ids": torch.tensor([[3, 4, 5], [0, 0, 19]]),
        "attention_mask": torch.tensor([[1, 1, 1], [0, 0, 1]]),
    }
    assert torch.equal(posterior.generate(ids, DRAWS, max_new_tokens=NEW).tokens, together.tokens)
    kept = together.tokens[0][together.mask[0]].tolist()
    assert together.texts[0] == Words().decode(kept, True)
    apart = posterior.generate(
        ["abc", "q"], DRAWS, by="draw", tokenizer=Words(), max_new_tokens=NEW, temperature=1.0
    )
    assert [len(each) for each in apart.texts] == [DRAWS, DRAWS]
    assert apart.texts[1][2] == Words().decode(apart.tokens[2, 1][apart.mask[2, 1]].tolist(), True)


def test_majority_is_counted() -> None:
    empty = torch.zeros(4, 2, 1)
    apart = GenerationByDraw(
        empty, empty.bool(), empty[None], (("a ", "b", " b", "a"), ("x: 1", "y: 1", "z: 1", "2"))
    )
    assert apart.majority() == (("a", 0.5), ("x: 1", 0.25))
    assert apart.majority(lambda text: text[-1])[1] == ("1", 0.75)
    close(apart.answer_entropy(), torch.tensor([2.0, 4.0]).double().log(), 1e-12)
    with pytest.raises(ValueError, match="give generate the tokenizer"):
        GenerationByDraw(empty, empty.bool(), empty[None]).majority()


MISTAKES = {
    "who": (
        lambda p: p.generate(prompts(), by="mode"),
        "by should be one of mixture, draw, mean, and is 'mode'",
    ),
    "draws": (lambda p: p.generate(prompts(), 0), "num_draws should be at least 1"),
    "tokens": (
        lambda p: p.generate(prompts(), max_new_tokens=0),
        "max_new_tokens should be at least 1, and is 0",
    ),
    "temperature": (
        lambda p: p.generate(prompts(), temperature=-1),
        "temperature should be 0, for greedy, or more",
    ),
    "top_p": (lambda p: p.generate(prompts(), top_p=0), "top_p should be above 0"),
    "texts": (lambda p: p.generate(["a"]), "tokenizer is missing"),
    "no list": (lambda p: p.generate("a", tokenizer=Words()), "list of one text or more, and is 'a'"),
    "no text": (lambda p: p.generate(["a", ""], tokenizer=Words()), r"prompts\[1\] has no token"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named(mistake: str) -> None:
    ask, words = MISTAKES[mistake]
    with pytest.raises(ValueError, match=words):
        ask(posterior_of())


def test_what_cannot_write_says_so() -> None:
    model = BayesianLora(tiny_bert(), GaussianPrior())
    with pytest.raises(ValueError, match="BertForSequenceClassification writes no text"):
        Posterior(model, DeltaGuide(model)).generate(prompts())
    local = BayesianLora(tiny_llama(), {"A": "relative_noise", "B": PointPrior()}, "next_token")
    with pytest.raises(ValueError, match="noise of this one depends on the item"):
        Posterior(local, GUIDES["amortised_noise"](local)).generate(prompts())
    laplace = Posterior(model := BayesianLora(tiny_llama(), GaussianPrior(), "next_token"), DeltaGuide(model))
    laplace.guide.predictive = "joint"
    with pytest.warns(UserWarning, match="Generate with by='mean'"):
        laplace.generate(prompts(), 2, max_new_tokens=1)
