"""pure: a matplotlib figure -> inline SVG that takes its colours from the page.

Each chart is drawn twice, for wide screens and for phones, since a chart that is scaled down has unreadable text.
"""

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from instruct_ray.data.report.token_view import escape_invisible

WIDE, NARROW = 960.0, 340.0
# Below this width there is no room for labels beside a chart.
MIN_SIDE_LABELS = 420.0
# Text and axes; the page's `color` replaces it. Behind text that stands on lines: the colour of a section.
INK, CARD = "#010203", "#fefdfc"
# Colours of Okabe and Ito, which colour-blind readers can tell apart. Each is a variable of the page's style.
BLUE, VERMILLION, GREEN, PURPLE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
PAGE_COLORS = {
    INK: "currentColor",
    CARD: "var(--card)",
    BLUE: "var(--blue)",
    VERMILLION: "var(--vermillion)",
    GREEN: "var(--green)",
    PURPLE: "var(--purple)",
}
KIND_COLORS = {"prompting": BLUE, "tuned": VERMILLION, "champion": GREEN, "rival": PURPLE}
KIND_MARKERS = {"prompting": "o", "tuned": "D", "champion": "s", "rival": "^"}
# Added to the defaults of matplotlib; the settings of a user have no influence.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    # Part of matplotlib, so that the layout is the same on every machine. The page's font is narrower.
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "figure.dpi": 72,
    "savefig.dpi": 72,
    "text.color": INK,
    # A dollar sign in a label is a dollar sign.
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.grid": False,
    "grid.color": INK,
    "grid.alpha": 0.14,
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "path.simplify": False,
}
SVG = "{http://www.w3.org/2000/svg}"
XLINK = "{http://www.w3.org/1999/xlink}"


@dataclass(frozen=True)
class Chart:
    """A chart of the page. Both pictures show the same; the page's style chooses one by the width of the screen."""

    title: str
    wide: str
    narrow: str


def make_chart(name: str, title: str, draw: Callable[[float], Figure], *, wide_width: float = WIDE) -> Chart:
    """Draw a chart for both widths.

    Args:
        name: unique on the page, made of letters and hyphens.
        title: what the chart shows, for readers who don't see it.
        draw: draws the figure for a width in pixels of the page.
        wide_width: the width on wide screens.
    """
    title = escape_invisible(title)
    # Characters that the font lacks are measured as boxes; the page's fonts draw them.
    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        wide, narrow = (
            _to_svg(draw(width), f"{name}-{variant}", title, variant)
            for width, variant in ((wide_width, "wide"), (NARROW, "narrow"))
        )
    return Chart(title, wide, narrow)


def new_axes(
    width: float, height: float, *, left: float, right: float = 14, top: float = 10, bottom: float = 44
) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; all sizes are pixels of the page."""
    figure = Figure(figsize=(width / 72, height / 72))
    FigureCanvasAgg(figure)
    box = (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    return figure, figure.add_axes(box)


def _to_svg(figure: Figure, name: str, title: str, variant: str) -> str:
    buffer = io.StringIO()
    with style.context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    root = ET.fromstring(buffer.getvalue())
    picture = ET.Element("svg", _root_attributes(root, title, variant))
    ET.SubElement(picture, "title").text = title
    for child in root:
        if child.tag != f"{SVG}metadata":
            picture.append(child)
    _clean(picture, name)
    return ET.tostring(picture, encoding="unicode")


def _root_attributes(root: ET.Element, title: str, variant: str) -> dict[str, str]:
    size = {key: root.attrib["viewBox"].split()[index] for key, index in (("width", 2), ("height", 3))}
    return {"class": variant, "viewBox": root.attrib["viewBox"], **size, "role": "img", "aria-label": title}


def _clean(picture: ET.Element, name: str) -> None:
    """Drop namespaces, fonts, matplotlib's style sheet and ids that nothing refers to; name the other ids uniquely."""
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', ET.tostring(picture, encoding="unicode")))
    for parent in picture.iter():
        for child in list(parent):
            if child.tag == f"{SVG}style":
                parent.remove(child)
    for element in picture.iter():
        element.tag = element.tag.removeprefix(SVG)
        element.tail = None
        if not (element.text or "").strip():
            element.text = None
        for key, value in list(element.attrib.items()):
            del element.attrib[key]
            if (key == "id" and value not in used) or (key == "transform" and value.startswith("rotate(-0 ")):
                continue
            element.attrib[key.removeprefix(XLINK)] = _clean_value(key, value, name)


def _clean_value(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    value = re.sub(r"url\(#", f"url(#{name}-", value)
    if key == f"{XLINK}href":
        return value.replace("#", f"#{name}-", 1)
    if key == "style":
        value = re.sub(r"font(?:-family)?: ([0-9.]+px)? ?'[^;]*'[^;]*;? ?", _keep_size, value)
        for color, replacement in PAGE_COLORS.items():
            value = value.replace(color, replacement)
    return value


def _keep_size(match: re.Match[str]) -> str:
    return f"font-size: {match[1]}; " if match[1] else ""
