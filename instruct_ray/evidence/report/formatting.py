"""pure: numbers and texts as the report shows them."""

from collections.abc import Callable

from instruct_ray.data.report.token_view import escape_invisible

NONE = "–"
MINUS, NARROW = "\u2212", "\u00a0"
# Texts of rows are cut beyond this.
MAX_CHARACTERS = 600


def percent(value: float | None) -> str:
    """A share: `87.0 %`."""
    return NONE if value is None else f"{100 * value:.1f}{NARROW}%"


def points(value: float | None, *, signed: bool = True) -> str:
    """A difference of shares: `+4.2`."""
    if value is None:
        return NONE
    rounded = round(100 * value, 1) + 0.0
    return (f"{rounded:+.1f}" if signed else f"{rounded:.1f}").replace("-", MINUS)


def number(value: float | None) -> str:
    """A count or a mean: `1,234`, and `3.4` for a fraction below 100."""
    if value is None:
        return NONE
    text = f"{value:,.0f}" if abs(value) >= 100 or float(value).is_integer() else f"{value:,.1f}"
    return text.replace("-", MINUS)


def seconds(value: float | None) -> str:
    """A duration: `85 ms` or `1.25 s`."""
    if value is None:
        return NONE
    return f"{1000 * value:.0f}{NARROW}ms" if value < 1 else f"{value:.2f}{NARROW}s"


def p_value(value: float | None) -> str:
    """A p value: `0.032`, or `< 0.001`."""
    if value is None:
        return NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval(lower: float | None, upper: float | None, kind: str = "percent") -> str:
    """An interval in the unit of `kind`: percent, points, seconds or number; `–` where there is none."""
    show: dict[str, Callable[[float | None], str]] = {
        "percent": percent,
        "points": points,
        "seconds": seconds,
        "number": number,
    }
    if lower is None or upper is None:
        return NONE
    start, end = show[kind](lower), show[kind](upper)
    unit = end.partition(NARROW)[2]
    if unit and start.endswith(f"{NARROW}{unit}"):
        return f"{start.partition(NARROW)[0]}–{end}"
    return f"{start} to {end}"


def shown_text(text: str, limit: int = MAX_CHARACTERS) -> str:
    """A text of the user's rows with invisible characters escaped, cut to a limit that says how much is missing."""
    if len(text) <= limit:
        return escape_invisible(text)
    return f"{escape_invisible(text[:limit])} … ({len(text) - limit:,} more characters)"


def short_label(text: str, limit: int) -> str:
    """A text in one line of a chart."""
    line = escape_invisible(" ".join(text.split()))
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"
