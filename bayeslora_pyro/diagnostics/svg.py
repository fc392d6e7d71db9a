"""Matplotlib figures as inline SVG in the colours of the page, so that they read in light and in dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["COLOURS", "SERIES", "draw_svg"]

COLOURS = {
    "ink": "#010101",
    "muted": "#020202",
    "line": "#030303",
    "blue": "#040404",
    "orange": "#050505",
    "green": "#060606",
    "violet": "#070707",
    "paper": "#080808",
}
"""Matplotlib wants a colour, the page a CSS variable: each stands for one and becomes it on the way out."""

SERIES = ("blue", "orange", "green", "violet", "ink")
"""The colours of a sequence of data sets, in their order."""

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bayeslora_pyro",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": COLOURS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "lines.linewidth": 1.6,
    "figure.constrained_layout.hspace": 0.07,
    "figure.constrained_layout.wspace": 0.05,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": COLOURS["ink"],
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "legend.labelcolor": COLOURS["ink"],
}


def draw_svg(name: str, label: str, width: float, height: float, plot: Callable[[Figure], None]) -> str:
    """Draw a figure without pyplot and return it as an ``<svg>`` element without any outside reference.

    Args:
        name: A prefix that makes the ids of the element unique in the page.
        label: What the figure shows, for those who do not see it.
        width: The width in points; the page scales it.
        height: The height in points.
        plot: Fills the figure, in the style of the page.
    """
    buffer = io.StringIO()
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        FigureCanvasAgg(figure)
        plot(figure)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return _inline(buffer.getvalue(), name, label)


def _inline(source: str, name: str, label: str) -> str:
    body = source[source.index("<svg") :]
    viewbox = re.search(r'viewBox="[^"]*"', body)
    body = body[body.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{name}-', body)
    body = re.sub(r'(?:xlink:)?href="#', f'href="#{name}-', body).replace("url(#", f"url(#{name}-")
    for colour, value in COLOURS.items():
        body = body.replace(value, f"var(--{colour})")
    body = re.sub(r"font: ([^;\"]*?)(\d[\d.]*px) [^;\"]*", r"font: \1\2 var(--sans)", body)
    opening = f'<svg role="img" aria-label="{html.escape(label)}" {viewbox.group(0) if viewbox else ""}>'
    return f"{opening}{body.strip()}"
