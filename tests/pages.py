"""Reading the pages of a report."""

import html.parser
import re

from bayeslora_pyro.diagnostics import report

VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(html.parser.HTMLParser):
    """Reads a page and checks that its elements nest, its ids are unique and its references stay inside."""

    def __init__(self, source):
        super().__init__()
        self.open, self.ids, self.references, self.words, self.tags = [], [], [], [], []
        self.feed(source)
        self.close()
        assert not self.open
        assert len(self.ids) == len(set(self.ids))
        assert {reference.removeprefix("#") for reference in self.references} <= set(self.ids)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append((tag, attrs))
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.references += [attrs[key] for key in ("href", "xlink:href", "src") if key in attrs]
        self.references += re.findall(r"url\((.*?)\)", str(attrs))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def page_of(container, tmp_path, **options):
    path = report(container, tmp_path / "report.html", **options)
    source = path.read_text(encoding="utf-8")
    return Page(source), source
