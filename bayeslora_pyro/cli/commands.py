"""The commands, and the options of each."""

from __future__ import annotations

from dataclasses import dataclass

from bayeslora_pyro.cli.options import (
    CELLS,
    DATA,
    DEVICE,
    DRAW_SEED,
    FIT_RUN,
    FITTING,
    METHOD,
    MODEL,
    PROTOCOL,
    SHIFTS,
    Option,
)
from bayeslora_pyro.cli.values import number, once, one_number_of, one_of, switch, text, whole
from bayeslora_pyro.config import PREDICTIVES, WRITERS

__all__ = ["COMMANDS", "Command"]


@dataclass(frozen=True)
class Command:
    """One command.

    Args:
        about: What it does, in a sentence.
        options: Its options.
        takes_run: Whether its first argument is a folder.
        example: How it may be called.
        folder: What lies in that folder.
    """

    about: str
    options: tuple[Option, ...]
    takes_run: bool
    example: str
    folder: str = "a fit"


COMMANDS: dict[str, Command] = {
    "fit": Command(
        "fit a posterior over the LoRA factors of a base model",
        (*MODEL, *DATA, *METHOD, *FITTING, *FIT_RUN),
        False,
        "bayeslora fit --model minilm --task sentiment --train 400",
    ),
    "evaluate": Command(
        "score a fit on its test set, and under shift",
        (
            Option("data", text("FILE"), "a file to score instead of the test set", group="data"),
            *SHIFTS,
            Option("num_draws", whole(1), "the number of draws (default: the method's own)"),
            Option("predictive", one_of(*PREDICTIVES), "what is drawn (default: the method's own)"),
            DRAW_SEED,
            DEVICE,
            Option("temperature", once, "also fit one temperature on the tuning set", False),
            Option("json", text("FILE"), "a file for the figures"),
        ),
        True,
        "bayeslora evaluate runs/sentiment-bayesian-lora --shift amazon tweets --json metrics.json",
    ),
    "report": Command(
        "write a page about a fit, with its ArviZ file",
        (
            *SHIFTS,
            Option("num_draws", whole(1), "the number of draws", 32),
            DRAW_SEED,
            DEVICE,
            Option("khat", switch, "score the training set too (default: if it has at most 2000 items)"),
            Option("output", text("FILE"), "the page (default: report.html in the folder of the run)"),
        ),
        True,
        "bayeslora report runs/sentiment-bayesian-lora --shift tweets",
    ),
    "draws": Command(
        "write draws from a fit as ordinary PEFT folders",
        (
            Option(
                "num", whole(1), "the number of draws (default: 16, of an ensemble as many of each member)"
            ),
            DRAW_SEED,
            DEVICE,
            Option("output", text("DIR"), "the folder to write (default: draws in the folder of the run)"),
        ),
        True,
        "bayeslora draws runs/sentiment-bayesian-lora --num 8 --output draws",
    ),
    "generate": Command(
        "write what comes after prompts, and how uncertain the fit is of it",
        (
            Option("prompt", text("TEXT"), "what to begin with"),
            Option("prompts", text("FILE"), "a .jsonl or .csv file instead, with a column prompt (or text)"),
            Option(
                "by",
                one_of(*WRITERS),
                "who writes: all draws together, each draw on its own, or the mean adapter",
                "mixture",
            ),
            Option("num_draws", whole(1), "the number of draws, decoded in one batch", 8),
            Option("max_new_tokens", whole(1), "the largest number of new tokens", 64),
            Option("temperature", number(0), "what sampling divides the logits by; 0 for greedy", 0.0),
            Option("top_p", number(0), "the probability of the tokens that are sampled from", 1.0),
            Option("batch_size", whole(1), "how many prompts are decoded together", 4),
            Option("seed", whole(0), "the seed of the draws and of the sampled tokens", 0),
            DEVICE,
            Option("json", text("FILE"), "a file for texts, tokens and uncertainties"),
        ),
        True,
        'bayeslora generate runs/chat-bayesian-lora --prompt "The capital of France is" --json answer.json',
    ),
    "bench": Command(
        "fit and score every method on the same data, and report it",
        (
            Option(
                "tier", one_of("smoke", "cpu", "gpu"), "which cells there are, and by which protocol", "smoke"
            ),
            *CELLS,
            *PROTOCOL,
            Option(
                "data_dir", text("DIR"), "a folder with files of the commonsense tasks; the hub otherwise"
            ),
            Option("workers", whole(1), "how many cells at a time (default: as many as there are cores)"),
            Option("engine", one_of("processes", "ray"), "what does the cells", "processes"),
            Option("list", once, "only list the cells that are left to do", False),
            Option("overwrite", once, "do cells anew that were done in another way", False),
            Option("output", text("DIR"), "the folder of the benchmark (default: runs/bench-<tier>)"),
        ),
        False,
        "bayeslora bench --tier cpu --tasks sentiment --methods lora blob --seeds 0 1 2",
    ),
    "bench report": Command(
        "write the tables and figures of a benchmark anew, from its cells alone",
        (
            Option(
                "num_draws",
                one_number_of(1, 4, 10, 16),
                "the number of draws of the tables: 1, 4, 10 or 16",
                10,
            ),
        ),
        True,
        "bayeslora bench report runs/bench-cpu --num-draws 16",
        "a benchmark",
    ),
}
"""The commands by name."""
