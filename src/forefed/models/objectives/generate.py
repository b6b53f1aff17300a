"""How well a language model's own answers agree with the right ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from forefed.core.intervals import Ends, Ratio
from forefed.core.metrics import BITS_PER_BYTE, EXACT_MATCH, Measures, Metric
from forefed.data.examples import Examples
from forefed.data.spans import exact_match
from forefed.models.objectives.next_token import NextToken
from forefed.models.objectives.objective import Rows, Sums

ROUGE_L = Metric(
    "rouge_l",
    "ROUGE-L",
    about="The longest sequence of words, in their order, that an answer shares with the right "
    "one, against the lengths of both: 1 where all words agree.",
)


class Generate(NextToken):
    """A language model whose answers are written, not only predicted word by word.

    Source: Lin 2004, "ROUGE", section 3.1, ROUGE-L with beta = 1 for one reference; words are runs
    of letters and digits of any script, in lower case, not stemmed. Exact match is SQuAD's
    (``data.spans``). Sums: ``rouge``, its squares, ``exact``, and those of ``NextToken``.
    """

    head: ClassVar[str] = "generate"
    speaks: ClassVar[bool] = True
    measures: ClassVar[Measures] = Measures((ROUGE_L, EXACT_MATCH, BITS_PER_BYTE), "answers")

    def agreement(self, said: Sequence[str], examples: Examples, rows: Rows) -> Sums:
        speech = examples.speech
        assert speech is not None
        right = [speech.right(examples, int(i)) for i in rows]
        scores = [rouge_l(a, b) for a, b in zip(said, right, strict=True)]
        return {
            "rouge": sum(scores),
            "rouge_squares": sum(x * x for x in scores),
            "exact": sum(exact_match(a, [b]) for a, b in zip(said, right, strict=True)),
        }

    def results(self, sums: Sums) -> dict[str, float]:
        n = sums["n"]
        shares = {"rouge_l": sums["rouge"] / n, "exact_match": sums["exact"] / n}
        return {**shares, **super().results(sums)}

    def interval(self, sums: Sums) -> Ends | None:
        n, a = sums["n"], sums["rouge"]
        ends = Ratio(n, a, n, sums["rouge_squares"], a, n).interval()
        return ends and (max(0.0, ends[0]), min(1.0, ends[1]))

    def number(self, sums: Sums) -> int:
        return int(sums["n"])


def rouge_l(answer: str, right: str) -> float:
    """The F-measure of the longest common subsequence of words, from 0 to 1."""
    a, b = (re.findall(r"[^\W_]+", text.lower()) for text in (answer, right))
    if not a or not b:
        return float(a == b)
    return 2 * common(a, b) / (len(a) + len(b))


def common(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest sequence that stands in both, gaps allowed."""
    row = [0] * (len(b) + 1)
    for x in a:
        left = 0  # of the row above, one column before
        for j, y in enumerate(b, 1):
            above = row[j]
            row[j] = left + 1 if x == y else max(above, row[j - 1])
            left = above
    return row[-1]
