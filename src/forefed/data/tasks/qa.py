"""The answer to a question in a context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from forefed.core.errors import UserError
from forefed.data.columns import AUTO, cannot_tell, first_named, named, texts
from forefed.data.encoding import Texts, tokenise
from forefed.data.examples import Examples, Indices
from forefed.data.rows import Rows
from forefed.data.spans import Questions, read_questions
from forefed.data.tasks.task import Head, TextTask


class QuestionAnswering(TextTask):
    """The part of a context that answers a question, or that none does (SQuAD)."""

    kind: Literal["qa"] = "qa"
    head: ClassVar[Head] = "spans"
    question: str = AUTO
    context: str = AUTO
    answer: str = AUTO
    """A column of answers as they stand in the context ("": no answer), or of SQuAD's own form,
    which has "text" and "answer_start" within: all of them count, the first one is learned."""
    answer_start: str = AUTO
    """The column of the character of the context at which the answer begins (-1: no answer)."""
    longest_answer: Annotated[int, Field(ge=1)] = 30
    """Tokens of the longest answer that is predicted."""

    def columns(self, rows: Rows) -> dict[str, list[str]]:
        guesses = {"question": ("question",), "context": ("context", "passage")}
        found = {
            setting: _column(rows, getattr(self, setting), conventional, setting)
            for setting, conventional in guesses.items()
        }
        found["answer"] = _column(rows, self.answer, ("answer", "answers"), "answer")
        if not {"text", "answer_start"} <= rows.fields(found["answer"]):
            starts = ("answer_start", "start")
            found["answer_start"] = _column(rows, self.answer_start, starts, "answer_start")
        elif self.answer_start != AUTO:
            raise UserError(
                f"data.task.answer_start: the column '{found['answer']}' says itself where its "
                "answers begin; leave this setting out"
            )
        return {setting: [column] for setting, column in found.items()}

    def texts(
        self, tables: Sequence[tuple[str, Rows]], columns: dict[str, list[str]]
    ) -> tuple[tuple[str, ...], list[Texts]]:
        return (), [
            read_questions(place, rows, columns, self.longest_answer) for place, rows in tables
        ]

    def groups(self, rows: Rows) -> Indices:
        """Questions about one context: it would be known from training."""
        numbers: dict[str, int] = {}
        contexts = texts(rows, self.columns(rows)["context"])
        return np.array([numbers.setdefault(c, len(numbers)) for c in contexts], dtype=np.int64)

    def asked(self, columns: dict[str, list[str]]) -> list[list[str]]:
        return [columns["question"], columns["context"]]

    def unlabelled(self, tokenizer: Any, texts: Sequence[list[str]], max_length: int) -> Examples:
        questions = Questions.unanswered(texts[0], texts[1], self.longest_answer)
        return tokenise(questions, tokenizer, max_length, testing=True).examples


def _column(rows: Rows, asked: str, conventional: Sequence[str], setting: str) -> str:
    where = f"data.task.{setting}"
    if asked != AUTO:
        return named(rows, asked, where)
    found = first_named(rows.column_names, [(name,) for name in conventional])
    if found is None:
        raise cannot_tell(rows, where)
    return found[0]
