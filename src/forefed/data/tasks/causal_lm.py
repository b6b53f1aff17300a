"""The text itself, as a language model learns it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from forefed.data.columns import AUTO, TEXTS, guess, named, texts
from forefed.data.encoding import Texts
from forefed.data.rows import Rows
from forefed.data.tasks.task import Head, TextTask


class CausalLM(TextTask):
    """The text itself, token by token; after a prompt, where a column gives one."""

    kind: Literal["causal_lm"] = "causal_lm"
    head: ClassVar[Head] = "causal_lm"
    text: str = AUTO
    prompt: str | None = None
    """A column of prompts: they stand before the text and carry no loss. Nothing is put between
    prompt and text."""

    def columns(self, rows: Rows) -> dict[str, list[str]]:
        prompt = [] if self.prompt is None else [named(rows, self.prompt, "data.task.prompt")]
        where = "data.task.text"
        if self.text != AUTO:
            return {"text": [named(rows, self.text, where)], "prompt": prompt}
        single = [names for names in TEXTS if len(names) == 1]
        return {"text": guess(rows, single, where, prompt), "prompt": prompt}

    def texts(
        self, tables: Sequence[tuple[str, Rows]], columns: dict[str, list[str]]
    ) -> tuple[tuple[str, ...], list[Texts]]:
        found = []
        for _, rows in tables:
            text = texts(rows, columns["text"])
            prompt = texts(rows, columns["prompt"]) if columns["prompt"] else [""] * len(text)
            found.append(Texts(prompt, text, None))
        return (), found

    def asked(self, columns: dict[str, list[str]]) -> list[list[str]]:
        return [columns["prompt"] or columns["text"]]
