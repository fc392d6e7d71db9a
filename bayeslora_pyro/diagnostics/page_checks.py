"""The section of a report about data drawn from the model."""

from __future__ import annotations

from bayeslora_pyro.diagnostics.arrays import Container, datasets
from bayeslora_pyro.diagnostics.checks import draw_check, predictive_check
from bayeslora_pyro.diagnostics.page import Html, figure, section
from bayeslora_pyro.diagnostics.svg import COLOURS, draw_svg

__all__ = ["checks"]


def checks(container: Container) -> Html | None:
    """Show the predictive checks, where the prior was asked to predict too."""
    if not {"prior_predictive", "observed_data"} <= datasets(container).keys():
        return None
    check = predictive_check(container)
    label = f"Nine tenths of the draws of {', '.join(check.names)} under prior and posterior, and the data."
    svg = draw_svg(
        "check", label, 560, 80 + 30 * len(check.names), lambda figure: draw_check(figure, check, COLOURS)
    )
    caption = (
        "Data drawn from the model: nine tenths of the draws, under the prior in grey and the posterior in blue; dots "
        "are the data. A dot outside the blue is what the fit has not learned; beside confidence it is the accuracy. "
        "Outside the grey, the prior did not expect such data."
    )
    return section("Do data from the model look like the data?", figure(svg, caption))
