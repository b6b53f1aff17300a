"""Colours, line styles and their legends, shared by the plots and the page.

Source of the colours: Okabe and Ito, "Color Universal Design" (2008), darkened where white paper
needs it. Every colour is a CSS variable with its light value as fallback, so that one SVG serves
the light page, the dark page and paper. Runs differ in dash and marker too: colour is never alone.
"""

from __future__ import annotations

from markupsafe import Markup

INK = {"ink": "#1b1f24", "quiet": "#5f6873", "grid": "#e3e6ea", "page": "#fefefe"}
INK_DARK = {"ink": "#e8eaed", "quiet": "#a2abb6", "grid": "#343a42", "page": "#15181c"}

SERIES = ("#0072b2", "#d55e00", "#009e73", "#b8578f", "#e69f00", "#3aa0dc", "#7a6a00", "#808890")
SERIES_DARK = (
    "#4aa8e0",
    "#ff8a3d",
    "#2fc79a",
    "#e28fc0",
    "#f2b834",
    "#86ccf5",
    "#d9c84a",
    "#a0a8b0",
)
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2.5), (1.6, 2), (8, 2, 1.6, 2))
MARKERS = ("o", "s", "^", "D")

PHASES = ("plan", "clients", "aggregate", "evaluate", "checkpoint", "other")
PHASE_COLOURS = dict(zip(PHASES, (5, 0, 2, 4, 3, 7), strict=True))

# The same four markers as SVG, 8 units wide, around the origin.
_MARKS = (
    '<circle r="3.6"/>',
    '<rect x="-3.3" y="-3.3" width="6.6" height="6.6"/>',
    '<path d="M0-4 3.9 3.2-3.9 3.2z"/>',
    '<path d="M0-4.4 4.4 0 0 4.4-4.4 0z"/>',
)


def colour(index: int) -> str:
    """The light value of series ``index``; colours recur after eight."""
    return SERIES[index % len(SERIES)]


def dash(index: int) -> tuple[float, ...]:
    return DASHES[(index // len(SERIES) + index) % len(DASHES)]


def marker(index: int) -> str:
    return MARKERS[(index // len(SERIES) + index) % len(MARKERS)]


def variables(dark: bool = False) -> str:
    """CSS declarations of all colours."""
    named = dict(INK_DARK if dark else INK)
    named |= {f"c{i}": value for i, value in enumerate(SERIES_DARK if dark else SERIES)}
    return " ".join(f"--{name}: {value};" for name, value in named.items())


def themed(svg: str) -> str:
    """The same SVG with every colour of the palette as a CSS variable."""
    named = dict(INK) | {f"c{i}": value for i, value in enumerate(SERIES)}
    for name, value in named.items():
        svg = svg.replace(value, f"var(--{name}, {value})")
    return svg


def _svg(text: str) -> Markup:
    return Markup(themed(text))


def line_swatch(index: int) -> Markup:
    """A short piece of run ``index``'s line with its marker, for a legend in HTML."""
    pattern = " ".join(f"{1.6 * length:g}" for length in dash(index))
    dashes = f' stroke-dasharray="{pattern}"' if pattern else ""
    mark = _MARKS[MARKERS.index(marker(index))]
    return _svg(
        f'<svg class="swatch" viewBox="-17 -6 34 12" aria-hidden="true" fill="{colour(index)}">'
        f'<path d="M-16 0H16" stroke="{colour(index)}" stroke-width="2.4"{dashes}/>{mark}</svg>'
    )


def box_swatch(index: int) -> Markup:
    """A filled square of one series' colour, for a legend in HTML."""
    return _svg(
        '<svg class="swatch box" viewBox="0 0 12 12" aria-hidden="true">'
        f'<rect width="12" height="12" rx="2" fill="{colour(index)}"/></svg>'
    )
