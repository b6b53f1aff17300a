"""Drawing with matplotlib into SVG text that stands inside a page: no script, no font, no reference
to the outside. Text stays text (the page's font, searchable); every colour is a CSS variable with
its light value as fallback, so that one SVG serves the light page, the dark page and paper.

Source of the colours: Okabe and Ito, "Color Universal Design" (2008), darkened where white paper
needs it. Series differ in dash and marker too: colour is never alone.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK = {"ink": "#1b1f24", "quiet": "#5f6873", "grid": "#e3e6ea", "page": "#fefefe"}
SERIES = ["#0072b2", "#d55e00", "#009e73", "#b8578f", "#e69f00", "#3aa0dc", "#7a6a00", "#808890"]
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 2.5), (1.6, 2), (8, 2, 1.6, 2))
MARKERS = "os^D"
FEW = 40
"""Points up to which each has a marker."""

_STYLE = Path(__file__).parent / "templates" / "plots.mplstyle"


def colour(index: int) -> str:
    """The light value of series ``index``; colours recur after eight, with other dashes."""
    return SERIES[index % len(SERIES)]


def look(index: int) -> tuple[tuple[float, ...], str]:
    """Dash and marker of series ``index``."""
    kind = (index // len(SERIES) + index) % len(DASHES)
    return DASHES[kind], MARKERS[kind]


class Drawing:
    """A figure; ``svg`` is its text after it is closed."""

    def __init__(self, figure: Figure):
        self.figure = figure
        self.svg = ""

    def axes(self) -> Axes:
        return self.figure.add_subplot()

    def stacked(self, top: float, bottom: float) -> Sequence[Axes]:
        """Two axes over each other with a common x axis, of these relative heights."""
        both: Sequence[Axes] = self.figure.subplots(
            2, 1, sharex=True, gridspec_kw={"height_ratios": (top, bottom)}
        )
        return both


@contextmanager
def drawn(key: str, wide: bool = False, height: float = 3.9) -> Iterator[Drawing]:
    """A figure in the house's style, closed at the end of the block.

    Args:
        key: makes the ids in the SVG unique on a page.
        wide: as wide as the page, not half of it.
        height: in hundreds of CSS pixels at that width, roughly.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context([_STYLE, {"svg.hashsalt": key}]):
        figure = Figure(figsize=(15.2 if wide else 7.4, height), layout="constrained")
        drawing = Drawing(figure)
        yield drawing
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with warnings.catch_warnings():
            # The reader's browser has glyphs that the plotting library's own font lacks.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(buffer, format="svg", metadata=nothing, dpi=144)
    drawing.svg = _inline(buffer.getvalue(), key)


def _inline(svg: str, key: str) -> str:
    """The bare <svg> element: ids of its own, no namespaces, sized by the page."""
    svg = svg[svg.index("<svg") :].strip()
    for pattern, text in (
        (r"(?s)<metadata>.*?</metadata>", ""),
        (r'\s+xmlns(:\w+)?="[^"]*"', ""),
        (r'^(<svg[^>]*?) width="[^"]*"', r"\1"),
        (r'^(<svg[^>]*?) height="[^"]*"', r"\1"),
        (r'\bid="', f'id="{key}-'),
        (r'(?:xlink:)?href="#', f'href="#{key}-'),
        ("xlink:href", "href"),
        (r"url\(#", f"url(#{key}-"),
        (r"font-family: [^;\"]*;? ?", ""),
        (r"(font: [\d.]+px) [^;\"]*", r"\1 inherit"),
    ):
        svg = re.sub(pattern, text, svg)
    for name, value in [*INK.items(), *((f"c{i}", value) for i, value in enumerate(SERIES))]:
        svg = svg.replace(value, f"var(--{name}, {value})")
    return svg


def draw_line(ax: Axes, index: int, xs: Sequence[float], ys: Any, marks: bool = True) -> None:
    """One curve in the style of series ``index``, a marker at every point where there are few."""
    dash, marker = look(index)
    marker = marker if marks and len(xs) <= FEW else ""
    style: Any = (0, dash) if dash else "-"
    ax.plot(xs, ys, color=colour(index), ls=style, marker=marker, markeredgewidth=0)


def image(ax: Axes, share: Any, **settings: Any) -> None:
    """A map whose opacity is the share [rows, columns]: it stands on a light page as well as on a
    dark one."""
    from matplotlib.colors import to_rgba_array

    rgba = to_rgba_array([colour(0)]).repeat(share.size, 0)
    rgba[:, 3] = share.ravel()
    ax.imshow(rgba.reshape(*share.shape, 4), aspect="auto", interpolation="nearest", **settings)
    ax.grid(visible=False)


def ticks(axis: Axis, text: Callable[[float], str], whole: bool = False, most: int = 9) -> None:
    """At most ``most`` + 1 round numbers, written by ``text``."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=most, integer=whole, steps=[1, 2, 5, 10]))
    labels(axis, text)


def labels(axis: Axis, text: Callable[[float], str]) -> None:
    axis.set_major_formatter(lambda value, _: text(value))


def levels(ax: Axes, named: Sequence[tuple[str, float]]) -> None:
    """Dashed lines across, each with its name at the right, which keep apart."""
    if not named:
        return
    low, high = ax.get_ylim()
    named = sorted(named, key=lambda item: item[1])
    low, high = min(low, named[0][1]), max(high, named[-1][1])
    ax.set_ylim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    low, high = ax.get_ylim()
    places = [(value - low) / ((high - low) or 1) for _, value in named]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + 0.075)
    over = max(0.0, places[-1] - 1)
    for (name, value), place in zip(named, places, strict=True):
        ax.axhline(value, color=INK["quiet"], lw=1, ls=(0, (5, 3)))
        ax.annotate(
            name,
            (1.008, place - over),
            xycoords="axes fraction",
            fontsize=11,
            va="center",
            color=INK["quiet"],
            annotation_clip=False,
        )
