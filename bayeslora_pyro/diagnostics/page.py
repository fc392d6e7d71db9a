"""One self-contained page: markup in which every text is escaped, and its style sheet."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import NewType

__all__ = ["Html", "definitions", "document", "figure", "pair", "paragraph", "section", "table", "tiles"]

Html = NewType("Html", str)
"""Markup, as opposed to text: only the functions of this file make it from text, and they escape."""

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #faf9f6; --ink: #1c2430; --muted: #5a6472; --line: #d9d6cd;
  --blue: #1f5fa8; --orange: #b8501a; --green: #23785a; --violet: #6a4c9f;
  --sans: ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "URW Palladio L", Georgia, serif;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171c; --ink: #e9e6df; --muted: #a3abb8; --line: #363d48;
    --blue: #7db3ef; --orange: #f0a267; --green: #74c5a0; --violet: #b8a1ea;
  }
}
* { box-sizing: border-box; }
html { font-size: 17px; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 1rem/1.55 var(--sans); }
main { max-width: 60rem; margin: 0 auto; padding: 3.5rem 1.25rem 5rem; }
h1, h2 { font-family: var(--serif); font-weight: 600; line-height: 1.15; text-wrap: balance; margin: 0; }
h1 { font-size: 2.5rem; letter-spacing: -0.01em; }
h2 { font-size: 1.5rem; }
p { max-width: 42rem; margin: 0.7rem 0 0; }
.eyebrow { margin: 0 0 0.6rem; color: var(--muted); font-size: 0.82rem; }
.lead { font-family: var(--serif); font-size: 1.22rem; line-height: 1.5; margin-top: 1.1rem; }
section { margin-top: 3.25rem; padding-top: 1.5rem; border-top: 1px solid var(--line); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: 1.2rem 1.75rem;
  margin: 2.25rem 0 0; }
.tiles div { border-top: 3px solid var(--blue); padding: 0.6rem 0 0; }
.tiles dt { color: var(--muted); font-size: 0.85rem; }
.tiles dd { margin: 0; font-variant-numeric: tabular-nums; }
.tiles .value { font-size: 1.75rem; line-height: 1.25; letter-spacing: -0.01em; }
.tiles .range { color: var(--muted); font-size: 0.82rem; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 2.5rem;
} figure { margin: 1.6rem 0 0; min-width: 0; }
figcaption { color: var(--muted); font-size: 0.85rem; line-height: 1.45; margin-top: 0.5rem; max-width: 42rem;
} svg { display: block; width: 100%; height: auto; overflow: visible; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.scroll { overflow-x: auto; margin-top: 1.4rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); font-size: 0.85rem; padding-bottom: 0.6rem; }
th, td { padding: 0.42rem 0 0.42rem 1.25rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; text-align: left; }
thead th { color: var(--muted); font-weight: 500; border-bottom: 1px solid var(--ink); vertical-align: bottom;
} tbody th { font-weight: 500; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
td.text, th.text { text-align: left; white-space: normal; min-width: 14rem; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: 0.3rem 1.5rem; margin: 1.2rem 0 0;
  font-size: 0.9rem; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: 0.88em; }
@media print { section { break-inside: avoid; } main { padding-top: 0; } }
""".strip()


def document(title: str, eyebrow: str, lead: str, parts: Iterable[Html]) -> Html:
    """Build the page: what it is about, the finding in a sentence, and its parts."""
    body = "\n".join(parts)
    return Html(
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        f'<header>\n<p class="eyebrow">{html.escape(eyebrow)}</p>\n<h1>{html.escape(title)}</h1>\n'
        f'<p class="lead">{html.escape(lead)}</p>\n</header>\n{body}\n</main>\n</body>\n</html>\n'
    )


def section(title: str, *parts: Html) -> Html:
    """Build a section of the page."""
    return Html(f"<section>\n<h2>{html.escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>")


def paragraph(text: str) -> Html:
    """Build a paragraph."""
    return Html(f"<p>{html.escape(text)}</p>")


def tiles(entries: Iterable[tuple[str, str, str]]) -> Html:
    """Build the row of headline figures: name, value and range of each."""
    cells = "\n".join(
        f'<div><dt>{html.escape(name)}</dt><dd class="value">{html.escape(value)}</dd>'
        f'<dd class="range">{html.escape(interval)}</dd></div>'
        for name, value, interval in entries
    )
    return Html(f'<dl class="tiles">\n{cells}\n</dl>')


def figure(svg: str, caption: str) -> Html:
    """Build a figure from an ``<svg>`` element of :func:`~bayeslora_pyro.diagnostics.svg.draw_svg`."""
    return Html(f"<figure>\n{svg}\n<figcaption>{html.escape(caption)}</figcaption>\n</figure>")


def pair(*figures: Html) -> Html:
    """Build a row of figures, a column on a narrow screen."""
    return Html('<div class="pair">\n' + "\n".join(figures) + "\n</div>")


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], prose: bool = False) -> Html:
    """Build a table whose first column names its rows.

    Args:
        caption: What the table shows.
        head: The names of the columns.
        rows: The cells.
        prose: Whether the last column holds sentences rather than figures.
    """
    classes = [""] * (len(head) - 1) + [' class="text"' if prose else ""]
    columns = "".join(
        f'<th scope="col"{style}>{html.escape(name)}</th>' for name, style in zip(head, classes, strict=True)
    )
    lines = []
    for first, *rest in rows:
        cells = "".join(
            f"<td{style}>{html.escape(cell)}</td>" for cell, style in zip(rest, classes[1:], strict=True)
        )
        lines.append(f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>')
    return Html(
        f'<div class="scroll"><table>\n<caption>{html.escape(caption)}</caption>\n'
        f"<thead><tr>{columns}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>\n</table></div>"
    )


def definitions(entries: Iterable[tuple[str, str]]) -> Html:
    """Build a list of names and values."""
    cells = "\n".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in entries)
    return Html(f'<dl class="facts">\n{cells}\n</dl>')
