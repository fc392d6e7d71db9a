"""Figures that others have published; none was measured here."""

from __future__ import annotations

__all__ = ["PUBLISHED_FIGURES"]

BLOB = "BLoB (Wang et al., 2024), arXiv 2406.11675"
LAPLACE = "Laplace-LoRA (Yang et al., 2024), arXiv 2308.13111"
BAYESIAN = "Bayesian-LoRA (Lin et al., 2026), arXiv 2601.21003"
C_LORA = "C-LoRA (2025), its own table"
TFB = "TFB (Shi et al., 2025), arXiv 2412.05723"

PUBLISHED_FIGURES: tuple[tuple[str, str, str, str], ...] = (
    ("Llama-2-7B, WG-S", "ECE", "4.15", LAPLACE),
    ("Llama-2-7B, WG-S", "ECE", "4.90 (N = 4)", BAYESIAN),
    ("Llama-2-7B, WG-S", "ECE", "6.86", C_LORA),
    ("Llama-2-7B, WG-S", "ECE", "9.35", BLOB),
    ("Llama-2-7B, WG-S", "NLL", ".60", LAPLACE),
    ("Llama-2-7B, WG-S", "NLL", ".63", BLOB),
    ("Llama-2-7B, WG-S", "accuracy", "70.89 (N = 0)", BLOB),
    ("Llama-2-7B, ARC-C", "ECE", "7.50", LAPLACE),
    ("Llama-2-7B, ARC-C", "ECE", "8.83", C_LORA),
    ("Llama-2-7B, ARC-C", "NLL", ".78", BLOB),
    ("Llama-2-7B, ARC-C", "accuracy", "70.83 (N = 0)", BLOB),
    ("Llama-2-7B, ARC-E", "ECE", "3.64 (N = 10)", BLOB),
    ("Llama-2-7B, ARC-E", "NLL", ".40 (N = 10)", BLOB),
    ("Llama-2-7B, ARC-E", "accuracy", "86.68 (N = 0)", BLOB),
    ("Llama-2-7B, WG-M", "ECE", "3.01 (N = 10)", BLOB),
    ("Llama-2-7B, WG-M", "NLL", ".54 (N = 10)", BLOB),
    ("Llama-2-7B, OBQA", "ECE", "3.40 (N = 5)", BLOB),
    ("Llama-2-7B, OBQA", "NLL", ".50 (N = 10)", BLOB),
    ("Llama-2-7B, OBQA", "accuracy", "82.73 (N = 0)", BLOB),
    ("Llama-2-7B, BoolQ", "ECE", "1.28 to 1.41", BAYESIAN),
    ("Llama-2-7B, BoolQ", "NLL", ".29", BAYESIAN),
    ("Llama-2-7B, BoolQ", "NLL", ".31", BLOB),
    ("Llama-2-7B, OBQA → chemistry, physics", "ECE", "9.77, 18.29", BLOB),
    ("Llama-2-7B, OBQA → chemistry, physics", "ECE", "12.49, 17.56", C_LORA),
    ("Llama-2-7B, prediction with N = 10", "× a plain pass", "9.4, last layer alone 1.5", TFB),
)
"""Base model and task, figure, value, source."""
