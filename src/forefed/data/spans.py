"""Extractive question answering: answers as spans of tokens, and how well they agree.

Source: Rajpurkar et al., "SQuAD" (arXiv 1606.05250), sections 3 and 6.1, for the two scores; "Know
What You Don't Know" (arXiv 1806.03822) for questions without an answer; the pointers to the first
and the last token, and to the first token of all for "no answer", are BERT's (arXiv 1810.04805,
sections 4.2 and 4.3). Departure: a context is cut at the maximum length and has no second window.

Axes: B examples, S positions, L lengths of an answer; 2: start and end.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from forefed.core.errors import UserError
from forefed.data.columns import texts
from forefed.data.encoding import CHUNK, Block, Row, Texts, blocks_of_rows
from forefed.data.examples import IGNORED_LABEL, Examples, Indices, Passages
from forefed.data.rows import Rows
from forefed.data.shorten import shortened
from forefed.data.token_files import Tokenised

NO_ANSWER = (0, 0)
"""The span that stands for "no answer": the first token, which no context begins with."""


@dataclass(frozen=True)
class Questions(Texts):
    """Questions (``first``) and their contexts (``second``).

    ``labels`` [N, 2] are the first character of the answer in its context and the one after its
    last, (-1, -1) without an answer. ``answers``: by question, all that count as right, none where
    there is no answer. ``longest``: tokens that a predicted answer may have.
    """

    answers: Sequence[tuple[str, ...]] = ()
    longest: int = 30

    tests_keep_more: ClassVar[bool] = True

    def select(self, rows: Indices) -> Questions:
        chosen = super().select(rows)
        answers = [self.answers[i] for i in rows]
        return replace(self, **vars(chosen), answers=answers)

    @staticmethod
    def unanswered(questions: list[str], contexts: list[str], longest: int) -> Questions:
        """Questions to which nobody knows an answer yet."""
        nowhere = np.full((len(questions), 2), -1)
        unknown: list[tuple[str, ...]] = [()] * len(questions)
        return Questions(questions, contexts, nowhere, answers=unknown, longest=longest)

    def blocks(self, tokenizer: Any, max_length: int, testing: bool) -> Iterator[Block]:
        return blocks_of_rows(enumerate(self.rows(tokenizer, max_length)), testing, (2,))

    def rows(self, tokenizer: Any, max_length: int) -> Iterator[Row]:
        """Question and context in the tokeniser's own format for pairs; the context is cut.

        Raises:
            UserError: the tokeniser tells no character positions.
        """
        assert self.second is not None and self.labels is not None
        if not tokenizer.is_fast:
            raise UserError(
                "data.task: answers are found by their characters, which needs the fast form of "
                "the model's tokeniser (tokenizer.json); choose a model that has one"
            )
        for start in range(0, len(self), CHUNK):
            part = slice(start, start + CHUNK)
            columns = [
                shortened(list(c[part]), tokenizer, max_length) for c in (self.first, self.second)
            ]
            encoded = tokenizer(*columns, return_offsets_mapping=True, verbose=False)
            for i, label in enumerate(self.labels[part].tolist()):
                of_context_S1 = np.array([[s == 1] for s in encoded.sequence_ids(i)])
                chars_S2 = np.where(of_context_S1, encoded["offset_mapping"][i], -1)
                types = encoded["token_type_ids"][i] if "token_type_ids" in encoded else None
                yield _row(encoded["input_ids"][i], types, chars_S2, label, max_length)

    def attach(self, found: Tokenised) -> Tokenised:
        """With the texts that predicted spans are cut from and compared to."""
        assert self.second is not None
        passages = Passages(
            [self.second[i] for i in found.kept],
            [self.answers[i] for i in found.kept],
            self.longest,
        )
        return replace(found, examples=replace(found.examples, passages=passages))


def read_questions(
    place: str, rows: Rows, columns: Mapping[str, list[str]], longest: int
) -> Questions:
    """The questions of these rows, every answer checked against its context.

    Args:
        place: what a message calls the rows.
        columns: by setting, see ``tasks.QuestionAnswering``.

    Raises:
        UserError: an answer that does not stand where it is said to; names the row.
    """
    questions = list(texts(rows, columns["question"]))
    contexts = list(texts(rows, columns["context"]))
    answers, labels = [], []
    for i, (found, starts) in enumerate(_answers(rows, columns)):
        where, context = f"data.task.answer: row {rows.number(i)} of the {place} rows", contexts[i]
        if len(found) != len(starts):
            raise UserError(f"{where} has {len(found)} answers and {len(starts)} starts; mend it")
        spans = [
            _span(text, start, context, where)
            for text, start in zip(found, starts, strict=True)
            if text.strip() and _number(start) != -1
        ]
        answers.append(tuple(context[a:b] for a, b in spans))
        labels.append(spans[0] if spans else (-1, -1))
    spans_N2 = np.array(labels).reshape(-1, 2)
    return Questions(questions, contexts, spans_N2, answers=answers, longest=longest)


def _answers(rows: Rows, columns: Mapping[str, list[str]]) -> Iterator[tuple[list[str], list[Any]]]:
    """By row, its answers and where they are said to begin."""
    (column,) = columns["answer"]
    if "answer_start" in columns:
        (start,) = columns["answer_start"]
        for text, at in zip(texts(rows, [column]), rows.values(start), strict=True):
            yield [text], [at]
        return
    for value in rows.values(column):  # SQuAD's own form
        value = value or {}
        yield value.get("text") or [], value.get("answer_start") or []


def _span(text: str, start: Any, context: str, where: str) -> tuple[int, int]:
    """The answer's first character and the one after its last, without blanks around it."""
    at, size = _number(start), len(text)
    if at is None or at < 0 or context[at : at + size] != text:
        there = "" if at is None else f", where '{context[max(at, 0) :][:size][:40]}' stands"
        seen = context.find(text)
        hint = f"it stands at {seen}" if seen >= 0 else "the context has no such words"
        raise UserError(
            f"{where}: the answer '{text[:40]}' does not begin at character "
            f"{start}{there} ({hint}); mend the row, or leave it out"
        )
    return at + size - len(text.lstrip()), at + len(text.rstrip())


def _number(value: Any) -> int | None:
    """A whole number, as one or as text; else None."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() else None


def _row(
    ids: list[int],
    types: list[int] | None,
    chars_S2: NDArray[np.int64],
    answer: list[int],
    max_length: int,
) -> Row:
    """Leaves out the last tokens of the context that are too many; a question that is too long by
    itself is cut, too, and has no context left."""
    context = np.flatnonzero(chars_S2[:, 0] >= 0)
    room = max(0, len(context) - max(0, len(ids) - max_length))
    kept = np.delete(np.arange(len(ids)), context[room:])[:max_length]
    label, out_of_reach = NO_ANSWER, False
    if answer[0] >= 0:
        begins, ends = chars_S2[context].T
        span = context[(ends > answer[0]) & (begins < answer[1])]
        # What is cut lies behind the answer, or is its end: positions before it stay as they are.
        out_of_reach = not len(span) or span[-1] not in kept
        label = (IGNORED_LABEL,) * 2 if out_of_reach else (int(span[0]), int(span[-1]))
    return Row(
        [ids[k] for k in kept],
        types and [types[k] for k in kept],
        label,
        cut=len(kept) < len(ids),
        out_of_reach=out_of_reach,
        dropped=not ids,
        chars=chars_S2[kept],
    )


def best_spans(logits_B2S: Tensor, context_BS: Tensor, longest: int) -> Tensor:
    """The first and the last token of every answer, [B, 2].

    Of all spans of at most ``longest`` tokens within the context the one with the largest sum of
    its two logits; ``NO_ANSWER`` where the sum at the first token is no smaller.
    """
    none_B = logits_B2S[:, :, 0].double().sum(1)
    logits = logits_B2S.double().masked_fill(~context_BS[:, None], -torch.inf)
    start_BS, end_BS = logits.unbind(1)
    # L ends for every start: at the same token, one later, ...
    end_BSL = pad(end_BS, (0, longest - 1), value=-torch.inf).unfold(1, longest, 1)
    best_B, at_B = (start_BS[:, :, None] + end_BSL).flatten(1).max(1)
    first_B = at_B // longest
    spans_B2 = torch.stack([first_B, first_B + at_B % longest], 1)
    return torch.where((best_B > none_B)[:, None], spans_B2, torch.tensor(NO_ANSWER))


def predict(logits_B2S: Tensor, examples: Examples, indices: Sequence[int] | Indices) -> list[str]:
    """The answers to these examples in the words of their contexts; "": no answer."""
    passages, chars = examples.passages, examples.chars
    assert passages is not None and chars is not None
    offsets = examples.offsets
    chars_BS2 = np.full((len(indices), logits_B2S.shape[2], 2), -1)
    for b, i in enumerate(indices):
        chars_BS2[b, : offsets[i + 1] - offsets[i]] = chars[offsets[i] : offsets[i + 1]]
    context_BS = torch.from_numpy(chars_BS2[:, :, 0] >= 0)
    spans_B2 = best_spans(logits_B2S.cpu(), context_BS, passages.longest)
    return [
        passages.contexts[i][chars_BS2[b, first, 0] : chars_BS2[b, last, 1]].strip()
        if (first, last) != NO_ANSWER
        else ""
        for b, (i, (first, last)) in enumerate(zip(indices, spans_B2.tolist(), strict=True))
    ]


def words_of(answer: str) -> list[str]:
    """The words that count: in lower case, without punctuation (ASCII) and English articles."""
    plain = answer.lower().translate(_NO_PUNCTUATION)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answer: str, right: Sequence[str]) -> float:
    """1 where the words of the answer are those of a right one, else 0."""
    return max(float(words_of(answer) == words) for words in _words_of_each(right))


def f1(answer: str, right: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of the answer's words, against the right answer
    that fits best. Where there is no right one: 1 for an answer of no words, else 0."""
    return max(_f1(words_of(answer), words) for words in _words_of_each(right))


def _words_of_each(right: Sequence[str]) -> list[list[str]]:
    return [words for answer in right if (words := words_of(answer))] or [[]]


def _f1(found: list[str], right: list[str]) -> float:
    if not found or not right:
        return float(found == right)
    common = sum((Counter(found) & Counter(right)).values())
    return 2 * common / (len(found) + len(right))
