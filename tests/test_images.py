"""Batches without tokens: what counts their items, and an image classifier from fit to prediction."""

import pytest
import torch

from bayeslora_pyro.guides import MeanFieldGuide
from bayeslora_pyro.inference import fit
from bayeslora_pyro.models import BayesianLora, Classification
from bayeslora_pyro.tiling import draws_per_pass
from bayeslora_pyro.types import main_input

from .tiny_vit import tiny_vit

IMAGES = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(6) % 3

BATCHES = {
    "tokens": {
        "labels": torch.zeros(4),
        "pixel_values": torch.zeros(9, 3, 8, 8),
        "input_ids": torch.zeros(6, 5),
    },
    "images": {"labels": torch.zeros(4), "mask": torch.zeros(4, 2), "pixel_values": IMAGES},
    "something else": {
        "labels": torch.zeros(4),
        "step": torch.tensor(3),
        "name": "a",
        "features": torch.zeros(6, 2),
    },
}


@pytest.mark.parametrize("name", BATCHES)
def test_items_are_the_rows_of_the_main_input(name: str) -> None:
    batch = BATCHES[name]
    assert Classification().num_items(batch) == len(main_input(batch)) == 6
    first = next(value for value in batch.values() if isinstance(value, torch.Tensor))
    assert len(first) != 6  # the rows of whatever comes first would be wrong


def test_a_batch_without_rows_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no tensor with a row per item, only 'labels', 'step': give what"):
        Classification().num_items({"labels": torch.zeros(4), "step": torch.tensor(3)})


def test_an_image_classifier_is_fitted_and_predicts() -> None:
    peft_model = tiny_vit()
    model = BayesianLora(peft_model, num_data=6)
    batches = [{"labels": LABELS[part], "pixel_values": IMAGES[part]} for part in (slice(0, 4), slice(4, 6))]
    result = fit(model, MeanFieldGuide(model), batches, num_steps=2, progress=False)
    assert draws_per_pass(peft_model, batches[0], 10**5) < draws_per_pass(peft_model, batches[1], 10**5)
    prediction = result.posterior.predict(batches, num_draws=3)
    assert prediction.log_probs.shape == (3, 6, 3)
    assert torch.equal(prediction.labels, LABELS)
    one_by_one = result.posterior.predict(batches, num_draws=3, memory_budget=1)
    torch.testing.assert_close(prediction.log_probs, one_by_one.log_probs)
