"""The frame of every page: one HTML file with its style sheet, no script, nothing loaded."""

from __future__ import annotations

from html import escape
from importlib.resources import files

from forefed.report import palette


def document(title: str, body: str, footer: str) -> str:
    """A whole page; ``body`` and ``footer`` are HTML already."""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)} – Forefed</title>
<style>
{_style()}
</style>
</head>
<body>
<main>
{body}
<footer>{footer}</footer>
</main>
</body>
</html>
"""


def _style() -> str:
    sheet = files("forefed.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        f":root {{ color-scheme: light dark; {palette.variables()} }}\n"
        "@media screen and (prefers-color-scheme: dark) "
        f"{{ :root {{ {palette.variables(dark=True)} }} svg image {{ filter: brightness(1.7); }} }}"
        f"\n{sheet}"
    )
