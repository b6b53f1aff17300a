"""Pages from templates: one HTML file with its style sheet, no script, nothing loaded.

Whatever comes from a record (names, labels, settings) is text to a page: jinja2 escapes it. Only
what is ``Markup`` is HTML already: drawings and the style sheet.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from forefed.report import draw


def render(template: str, **context: Any) -> str:
    """A page; what the template names and the context lacks is an error."""
    text = _environment().get_template(template).render(style=_style(), **context)
    return re.sub(r"\n{3,}", "\n\n", text)


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("forefed.report"),
        autoescape=select_autoescape(("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters |= {
        "pipes": lambda text: text.replace("|", "\\|").replace("\n", " "),
        # a number and its sign or unit stay on one line
        "unbroken": lambda text: text.replace(" %", "\u00a0%").replace("± ", "±\u00a0"),
    }
    found.globals |= {"look": draw.look, "series": len(draw.SERIES)}
    return found


@cache
def _style() -> Markup:
    sheet = files("forefed.report").joinpath("templates", "style.css")
    return Markup(sheet.read_text(encoding="utf-8"))
