"""A tiny vision transformer with LoRA, whatever `transformers` calls its queries and values."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import ViTConfig, ViTForImageClassification


def tiny_vit(num_labels: int = 3) -> PeftModel:
    """A classifier of images of 8 x 8 pixels, in eval mode; its classifier in `modules_to_save`."""
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_labels=num_labels,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base_model = ViTForImageClassification(config)
        names = {name.rpartition(".")[2] for name, _ in base_model.named_modules()}
        targets = sorted({"q_proj", "v_proj", "query", "value"} & names)
        lora = LoraConfig(r=2, target_modules=targets, modules_to_save=["classifier"])
        return get_peft_model(base_model, lora).eval()
