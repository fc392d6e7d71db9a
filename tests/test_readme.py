"""The README's code runs as it stands, and so do the examples."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bayeslora_pyro import Posterior

ROOT = Path(__file__).parent.parent


def _blocks(language: str) -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def _tiny_base() -> torch.nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=50,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                num_labels=3,
            )
        )


def _tiny_loader(seed: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(0, 50, (8, 6), generator=generator),
            "attention_mask": torch.ones(8, 6, dtype=torch.long),
            "labels": torch.randint(0, 3, (8,), generator=generator),
        }
        for _ in range(2)
    ]


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base_model = _tiny_base()
    names = {
        "base_model": base_model,
        "base": copy.deepcopy(base_model),
        "train_loader": _tiny_loader(0),
        "test_loader": _tiny_loader(1),
        "Posterior": Posterior,
    }
    for block in _blocks("python"):
        exec(block.replace("num_steps=600", "num_steps=3").replace("num_data=400", "num_data=16"), names)
    assert names["prediction"].probs.shape == (16, 3)
    assert (tmp_path / "report.html").stat().st_size > 10_000
    assert len(list((tmp_path / "draws").iterdir())) == 8


def test_the_readme_names_commands_that_exist() -> None:
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    named = set(re.findall(r"^make ([a-z-]+)", "\n".join(_blocks("console")), flags=re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_the_readmes_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_demo_runs(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "examples/demo.py",
        "--num-steps",
        "2",
        "--num-test",
        "40",
        "--output",
        str(tmp_path),
    ]
    environment = os.environ | {"PYTHONPATH": "."}
    subprocess.run(command, cwd=ROOT, check=True, timeout=500, capture_output=True, env=environment)
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics) == ["lora", "lora+ts", "bayesian-lora-mf", "bayesian-lora"]
    assert set(metrics["lora"]) == {"sentiment", "amazon", "tweets"}
    assert set(metrics["lora"]["sentiment"]["ece"]) == {"mean", "sd"}
    assert (tmp_path / "report.html").exists()
    assert (tmp_path / "posterior" / "adapter_model.safetensors").exists()


def test_the_band_gaps_run_and_a_job_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    sizes = ["--num-steps", "2", "--num-train", "40", "--num-test", "12", "--num-draws", "4"]
    methods = ["--methods", "lora", "ensemble", "blob", "--splits", "oxides and halides"]
    command = [sys.executable, "examples/band_gap.py", *sizes, *methods, "--output", str(tmp_path)]
    command += ["--num-workers", "1", "--dtype", "float32"]
    environment = os.environ | {"PYTHONPATH": "."}
    outputs = [
        subprocess.run(
            command, cwd=ROOT, check=True, timeout=500, capture_output=True, env=environment, text=True
        ).stdout
        for _ in range(2)
    ]
    assert ["fitted in" in output for output in outputs] == [True, False]
    assert (tmp_path / "band_gaps.png").stat().st_size > 10_000
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert list(metrics["oxides and halides"]) == ["lora", "ensemble", "blob"]
    lora, ensemble, blob = metrics["oxides and halides"].values()
    assert ensemble["by_draws"]["1"] == lora["scores"]  # the first member
    assert list(ensemble["by_draws"]) == ["1", "2", "4", "5"]
    assert blob["scores"] == blob["by_draws"]["4"]


def test_the_ratings_run(tmp_path: Path) -> None:
    sizes = ["--num-steps", "2", "--num-train", "16", "--num-test", "8", "--methods", "balora"]
    subprocess.run(
        [sys.executable, "examples/ratings.py", *sizes, "--output", str(tmp_path)],
        cwd=ROOT,
        check=True,
        timeout=500,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": "."},
    )
    scores = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    for name in ("movies", "products"):
        learned, predicted = scores[name].values()
        assert learned["raters"] == 0.0 != predicted["raters"]  # one noise for all follows nobody


def test_the_digits_run() -> None:
    steps = ["--num-steps", "2", "--pretrain-steps", "2", "--num-train", "20"]
    done = subprocess.run(
        [sys.executable, "examples/vision.py", *steps],
        cwd=ROOT,
        check=True,
        timeout=500,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": "."},
        text=True,
    )
    assert done.stdout.count("balora") == 4
