"""A report parsed with html.parser: asserts that it is well formed, and gives its text by section."""

from collections import defaultdict
from html.parser import HTMLParser

VOID_TAGS = {"meta", "br", "img", "link", "input", "hr"}


class ParsedPage(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        """(tag, name, value)."""
        self.text = ""
        self.sections: dict[str, str] = defaultdict(str)
        """Text by id of the section, without the texts of charts."""
        self.charts: dict[str, list[str]] = defaultdict(list)
        """What the charts of a section show, for readers who don't see them."""
        self._open: list[tuple[str, str]] = []
        self.feed(content)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.tags.add(tag)
        values = {name: value or "" for name, value in attrs}
        self.attributes += [(tag, name, value) for name, value in values.items()]
        if tag == "svg":
            self.charts[self.section].append(values["aria-label"])
        if tag not in VOID_TAGS:
            self._open.append((tag, values.get("id", "") if tag == "section" else ""))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1][0] == tag, (tag, self._open[-3:])
        self._open.pop()
        # Cells of a table have no space between them.
        self.sections[self.section] += " "

    def handle_data(self, data: str) -> None:
        self.text += data
        if not any(tag == "svg" for tag, _ in self._open):
            self.sections[self.section] += data

    @property
    def section(self) -> str:
        """Id of the section that is open; empty outside of all."""
        return next((section for _, section in reversed(self._open) if section), "")

    def ids(self) -> list[str]:
        return [value for _, name, value in self.attributes if name == "id"]

    def references(self) -> list[str]:
        """Values of attributes that make a browser load something, or jump."""
        loading = ("src", "srcset", "href", "xlink:href", "action", "data", "poster", "background", "formaction")
        return [value for _, name, value in self.attributes if name in loading]


def squeeze(text: str) -> str:
    """The text with single spaces."""
    return " ".join(text.split())
