"""Fenced blocks of the pages, and the commands in them.

Every fence names its language: ``python`` blocks run (those of a page one after the other),
``toml`` blocks are read as what they configure, the commands of ``console`` blocks are parsed;
``text`` is for people. A comment ``<!-- not run: why -->`` right above a block that needs the
network or real machines leaves it at the syntax.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LANGUAGES = {"python", "toml", "console", "text", "json", "bibtex", "ini", "yaml"}
_NOT_RUN = re.compile(r"<!-- not run: .+ -->")
_FENCE = re.compile(r"^( *)(```+)(.*)$")


@dataclass(frozen=True)
class Block:
    """``line``: of its first fence; ``run``: False where a comment says that it is not run."""

    page: str
    line: int
    language: str
    text: str
    run: bool

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """Everything that people read, but the records of what was measured and learned."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
    found += [ROOT / "CHANGELOG.md", *(ROOT / "examples").rglob("*.md")]
    return [p for p in [*found, *sorted((ROOT / "docs").rglob("*.md"))] if p.exists()]


def blocks(page: Path) -> list[Block]:
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    name, start = page.relative_to(ROOT).as_posix(), 0
    while start < len(lines):
        opened = _FENCE.match(lines[start])
        if opened is None:
            start += 1
            continue
        indent, fence, language = opened.groups()
        end = next(i for i in range(start + 1, len(lines)) if lines[i].strip().startswith(fence))
        text = "\n".join(line.removeprefix(indent) for line in lines[start + 1 : end])
        above = next((line for line in reversed(lines[:start]) if line.strip()), "")
        run = _NOT_RUN.fullmatch(above.strip()) is None
        found.append(Block(name, start + 1, language.strip(), text, run))
        start = end + 1
    return found


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a shell's lines; a variable stands for some number."""
    text = re.sub(r"\$\{[^}]*\}|\$\w+", "9201", text.replace("\\\n", " "))
    for line in text.splitlines():
        words = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in words:
            if set(word) <= set(";&|()<>") or word in ("do", "done", "for"):
                if command:
                    yield command
                command = []
            else:
                command.append(word)
        if command:
            yield command
