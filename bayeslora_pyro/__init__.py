"""Bayesian LoRA adapters for language models, written as Pyro programs."""

__version__ = "0.1.0"
