"""The inference side: variational families."""

from bayeslora_pyro.guides.base import Guide as Guide
from bayeslora_pyro.guides.delta import DeltaGuide as DeltaGuide
from bayeslora_pyro.guides.dropout import DropoutGuide as DropoutGuide
from bayeslora_pyro.guides.flow import FlowGuide as FlowGuide
from bayeslora_pyro.guides.mean_field import MeanFieldGuide as MeanFieldGuide

__all__ = ["GUIDES", "DeltaGuide", "DropoutGuide", "FlowGuide", "Guide", "MeanFieldGuide"]

GUIDES: dict[str, type[Guide]] = {
    "delta": DeltaGuide,
    "mean_field": MeanFieldGuide,
    "flow": FlowGuide,
    "dropout": DropoutGuide,
}
"""The guides by name."""
