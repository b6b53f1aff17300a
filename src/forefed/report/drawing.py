"""Drawing with matplotlib into SVG text that stands inside a page: no script, no font, no reference
to the outside. Text stays text (the page's font, searchable) and colours are CSS variables.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from forefed.report.palette import INK, colour, dash, marker, themed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Sizes are CSS pixels at the width the page gives the plot (72 units per inch).
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a label such as "$5 or $10" is no formula
    "font.size": 12,
    "axes.edgecolor": INK["quiet"],
    "axes.labelcolor": INK["quiet"],
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK["grid"],
    "grid.linewidth": 0.8,
    "text.color": INK["ink"],
    "xtick.color": INK["quiet"],
    "ytick.color": INK["quiet"],
    "xtick.labelsize": 11.5,
    "ytick.labelsize": 11.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.5,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


class Drawing:
    """A figure, and its SVG text after it is closed."""

    def __init__(self, figure: Figure, key: str):
        self.figure = figure
        self.key = key
        self.svg = ""

    def axes(self) -> Axes:
        return self.figure.add_subplot()

    def stacked(self, top: float, bottom: float) -> tuple[Axes, Axes]:
        """Two axes over each other with a common x axis, of these relative heights."""
        grid = self.figure.add_gridspec(2, 1, height_ratios=(top, bottom))
        below = self.figure.add_subplot(grid[1])
        above = self.figure.add_subplot(grid[0], sharex=below)
        above.tick_params(labelbottom=False)
        return above, below

    def close(self) -> str:
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        with warnings.catch_warnings():
            # The reader's browser has glyphs that the plotting library's own font lacks.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            self.figure.savefig(buffer, format="svg", metadata=nothing, dpi=144)
        self.svg = _inline(buffer.getvalue(), self.key)
        return self.svg


@contextmanager
def drawn(key: str, wide: bool = False, height: float = 3.9) -> Iterator[Drawing]:
    """A figure in the house's style, closed at the end of the block.

    Args:
        key: makes the ids in the SVG unique on a page.
        wide: as wide as the page, not half of it.
        height: in hundreds of CSS pixels at that width, roughly.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {**_STYLE, "svg.hashsalt": key}
    with matplotlib.rc_context(style):
        width = 15.2 if wide else 7.4
        drawing = Drawing(Figure(figsize=(width, height), layout="constrained"), key)
        yield drawing
        if not drawing.svg:
            drawing.close()


def _inline(svg: str, key: str) -> str:
    """The bare <svg> element: ids of its own, no namespaces, sized by the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'href="#', f'href="#{key}-', svg).replace("url(#", f"url(#{key}-")
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r"(font: [\d.]+px) [^;\"]*", r"\1 inherit", svg)
    return themed(svg.strip())


def draw_line(ax: Axes, index: int, xs: Sequence[float], ys: Any, marks: bool) -> None:
    """One curve in the style of series ``index``; ``marks``: a marker at every point."""
    style: Any = (0, dash(index)) if dash(index) else "-"
    ax.plot(
        xs,
        ys,
        color=colour(index),
        ls=style,
        marker=marker(index) if marks else "",
        markeredgewidth=0,
    )


def whole_rounds(ax: Axes) -> None:
    """Ticks of the x axis at whole numbers."""
    ax.xaxis.set_major_locator(ticks(integer=True))


def ticks(integer: bool = False, most: int = 9) -> Any:
    """A locator of at most ``most`` + 1 round numbers."""
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=most, integer=integer, steps=[1, 2, 5, 10])


def label_axis(axis: Axis, text: Callable[[float], str]) -> None:
    """Tick labels by ``text``."""
    axis.set_major_formatter(lambda value, _: text(value))
