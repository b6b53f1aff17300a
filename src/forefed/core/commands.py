"""What several commands share: an option, and arguments that are texts ("-5 degrees")."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from typer import Context, Option
from typer.core import TyperCommand

AcceptChanges = Annotated[
    bool,
    Option(
        "--accept-changes",
        help="Resume although rows, weights or versions changed; the record will say so.",
    ),
]

_MARK = "\x00"
_OPTION = re.compile(r"--?[A-Za-z][\w-]*|--[A-Za-z][\w-]*=.*", re.DOTALL)


class TextCommand(TyperCommand):
    """A command that takes an argument for a text unless it looks like an option: one or two
    dashes, a letter, and no blank before a "="."""

    def parse_args(self, ctx: Context, args: list[str]) -> list[str]:  # type: ignore[override]
        end = args.index("--") if "--" in args else len(args)
        marked = [f"{_MARK}{arg}" if _is_text(arg) else arg for arg in args[:end]]
        rest = super().parse_args(ctx, marked + args[end:])
        for name, value in ctx.params.items():
            ctx.params[name] = _unmarked(value)
        return rest


def _is_text(argument: str) -> bool:
    return argument[:1] == "-" and len(argument) > 1 and not _OPTION.fullmatch(argument)


def _unmarked(value: Any) -> Any:
    if isinstance(value, str):
        return value.removeprefix(_MARK)
    if isinstance(value, Path):
        return Path(str(value).removeprefix(_MARK))
    return type(value)(map(_unmarked, value)) if isinstance(value, list | tuple) else value
