"""The same code on images: a small vision transformer on handwritten digits, and on digits that are turned.

A ViT is first trained here on the digits 0 to 4 of scikit-learn. LoRA and BaLoRA on its queries, keys and values then
adapt it to the digits 5 to 9 from 60 images, and are evaluated on all others of these digits: as they are, turned by
15 and 30 degrees, and under noise.

    pip install scikit-learn
    python examples/vision.py --seeds 3
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from bayeslora_pyro import METHODS, Ensemble
from bayeslora_pyro.adapters import add_lora

SHOWN = ("accuracy", "nll", "ece")
BATCH = 20
TARGETS = (["q_proj", "k_proj", "v_proj"], ["query", "key", "value"])
"""What queries, keys and values are called in ViT, in one version of transformers or another."""

Batch = dict[str, Tensor]


def load_digits() -> tuple[Tensor, Tensor]:
    """All images `(1797, 1, 8, 8)`, between 0 and 1, and their digits."""
    try:
        from sklearn.datasets import load_digits as load
    except ImportError:
        raise SystemExit("The digits come with scikit-learn: pip install scikit-learn") from None
    images, digits = load(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(digits)


def turned(images: Tensor, degrees: float) -> Tensor:
    """The images, turned."""
    cos, sin = torch.deg2rad(torch.tensor([degrees, 90 - degrees])).cos()
    matrix = torch.stack([torch.stack([cos, -sin, sin * 0]), torch.stack([sin, cos, sin * 0])])
    grid = nn.functional.affine_grid(
        matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False
    )
    return nn.functional.grid_sample(images, grid, align_corners=False)


def noisy(images: Tensor, deviation: float) -> Tensor:
    """The images, with Gaussian noise."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    return (images + deviation * noise).clamp(0, 1)


SETS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda images: images,
    "turned by 15°": lambda images: turned(images, 15),
    "turned by 30°": lambda images: turned(images, 30),
    "noise of 0.2": lambda images: noisy(images, 0.2),
}


def batches(images: Tensor, labels: Tensor, size: int) -> list[Batch]:
    """Batches as a collator would yield them."""
    pairs = zip(images.split(size), labels.split(size), strict=True)
    return [{"pixel_values": pixels, "labels": classes} for pixels, classes in pairs]


def pretrain(images: Tensor, labels: Tensor, num_steps: int) -> ViTForImageClassification:
    """Trains a vision transformer, all of it."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=5,
    )
    model = ViTForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(num_steps):
        items = torch.randint(len(labels), (64,))
        loss = model(pixel_values=images[items], labels=labels[items]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def adapt(
    base_state: dict[str, Any], config: ViTConfig, method: str, train: list[Batch], seed: int, steps: int
) -> tuple[Ensemble, int]:
    """Fits a method to a fresh copy of the trained transformer; returns what predicts, and with how many draws."""
    base_model = ViTForImageClassification(config)
    base_model.load_state_dict(base_state)
    names = {name.rpartition(".")[2] for name, _ in base_model.named_modules()}
    targets = next(targets for targets in TARGETS if names >= set(targets))
    peft_model = add_lora(base_model.eval(), task_type="SEQ_CLS", target_modules=targets, seed=seed)
    recipe = METHODS[method](peft_model, "classification", BATCH * len(train), seed=seed)
    fitted = recipe.fit(train, num_steps=steps, learning_rate=3e-3, head_learning_rate=3e-3, progress=False)
    return fitted.chains, recipe.num_draws


def run(method: str, seed: int, arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Pretrains, adapts and evaluates; the images that are adapted to depend on the seed."""
    torch.set_num_threads(1)
    images, digits = load_digits()
    first = digits < 5
    base_model = pretrain(images[first], digits[first], arguments.pretrain_steps)
    images, labels = images[~first], digits[~first] - 5
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    known, rest = order[: arguments.num_train], order[arguments.num_train :]
    train = batches(images[known], labels[known], BATCH)
    predictor, num_draws = adapt(
        base_model.state_dict(), base_model.config, method, train, seed, arguments.num_steps
    )
    return {
        name: predictor.predict(batches(change(images[rest]), labels[rest], 128), num_draws).evaluate()
        for name, change in SETS.items()
    }


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["lora", "balora"])
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds to average over")
    parser.add_argument("--num-train", type=int, default=60, help="images to adapt to, a multiple of 20")
    parser.add_argument("--num-steps", type=int, default=300, help="optimizer steps of every method")
    parser.add_argument("--pretrain-steps", type=int, default=300, help="optimizer steps before LoRA")
    arguments = parser.parse_args()
    table = Table("digits 5 to 9", "method", *SHOWN, title=f"Mean of {arguments.seeds} seed(s)")
    results = {
        method: [run(method, seed, arguments) for seed in range(arguments.seeds)]
        for method in arguments.methods
    }
    for name in SETS:
        for method, runs in results.items():
            means = (statistics.fmean(scores[name][metric] for scores in runs) for metric in SHOWN)
            table.add_row(name, method, *(f"{mean:.3f}" for mean in means))
        table.add_section()
    Console().print(table)


if __name__ == "__main__":
    main()
