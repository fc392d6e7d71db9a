"""`Posterior.generate` with eight draws against one plain generation, token for token as many."""

from __future__ import annotations

import argparse

import torch
from cases import Case, guide_of
from timing import Row, alternate, main, ratios

from bayeslora_pyro import BayesianLora, Posterior

NUM_DRAWS, PROMPT, NEW_TOKENS = 8, 16, 64
BARS = {"smollm2": 2.0}


def measure(case: Case, options: argparse.Namespace) -> Row:
    """Writes after one prompt, greedily, and never ends early; draws of all factors included."""
    prompt = {name: case.batch[name][:1, :PROMPT] for name in ("input_ids", "attention_mask")}
    base_model = case.peft_model.get_base_model()
    base_model.generation_config.eos_token_id = base_model.config.eos_token_id = None
    model = BayesianLora(case.peft_model, "inducing", "next_token")
    posterior = Posterior(model, guide_of(model, options.guide))

    lengths: set[int] = set()

    def ours() -> None:
        lengths.add(posterior.generate(prompt, NUM_DRAWS, max_new_tokens=NEW_TOKENS).tokens.shape[1])

    @torch.no_grad()
    def plain() -> None:
        options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "pad_token_id": 0}
        lengths.add(case.peft_model.generate(**prompt, **options).shape[1] - PROMPT)

    times = alternate({"ours": ours, "plain": plain}, options)
    (new_tokens,) = lengths  # as many on both sides, or the ratio says nothing
    row = {"draws": NUM_DRAWS, "prompt_tokens": PROMPT, "new_tokens": new_tokens}
    return ratios(times["ours"], times["plain"]) | row


if __name__ == "__main__":
    main("Generation: ours with 8 draws / one plain generation", measure, BARS, repeats=3, models=["smollm2"])
