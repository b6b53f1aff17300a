"""Answers that are written and compared with the right ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from forefed.core.errors import UserError
from forefed.data.examples import Examples, Speech
from forefed.data.rows import Rows
from forefed.data.tasks.causal_lm import CausalLM
from forefed.data.tasks.task import Head


class Generate(CausalLM):
    """As ``causal_lm`` learns answers; a test lets the model write them, and compares.

    The likeliest token is taken each time. Of a row with several answers the last one is written.
    An answer that was cut off is compared with what is left of it.
    """

    kind: Literal["generate"] = "generate"  # type: ignore[assignment]
    head: ClassVar[Head] = "generate"
    tokens: Annotated[int, Field(ge=1)] = 64
    """At most, of an answer that is written."""

    def columns(self, rows: Rows) -> dict[str, list[str]]:
        found = super().columns(rows)
        if "messages" not in found and not found["prompt"]:
            raise UserError(
                "data.task.prompt: nothing stands before the texts of these rows, so there is "
                "nothing to answer; name a column of prompts or of messages, or take "
                'data.task.kind = "causal_lm"'
            )
        return found

    def finish(self, examples: Examples, tokenizer: Any, names: Sequence[str]) -> Examples:
        # A template's ends are a text's, too; where there is none, a text has but its own.
        columns = {"messages": ["messages"]} if examples.learned is not None else {}
        ends = self.ends(tokenizer, columns)
        return replace(examples, speech=Speech(tokenizer, ends, self.tokens))
