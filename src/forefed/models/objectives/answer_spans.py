"""The answer to a question as a part of its context."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from forefed.core.intervals import Ends, wilson
from forefed.core.metrics import EXACT_MATCH, F1, Measures
from forefed.core.types import Batch
from forefed.data.examples import IGNORED_LABEL, Examples
from forefed.data.spans import exact_match, f1, predict
from forefed.models.objectives.objective import CrossEntropy, Rows, Sums, wide


class AnswerSpans(CrossEntropy):
    """The first and the last token of an answer: logits [B, 2, S], labels [B, 2].

    Source: BERT (arXiv 1810.04805), section 4.2. Departure: its loss, and that of transformers,
    runs over padding too; here padding is left out, so that a loss does not depend on the other
    texts of a batch. An example whose answer was cut off has no loss. Sums: ``exact`` and ``f1``.
    """

    head: ClassVar[str] = "spans"
    auto: ClassVar[str] = "AutoModelForQuestionAnswering"
    # PEFT's class for QUESTION_ANS drops token_type_ids on their way to the model.
    peft_task: ClassVar[str | None] = None
    measures: ClassVar[Measures] = Measures((F1, EXACT_MATCH), "questions")
    shares: ClassVar[int] = 2

    @property
    def outputs(self) -> int:
        return 2

    def recipe(self) -> str:
        return """for question, context in texts:
    inputs = tokenizer(
        question, context, truncation="only_second", max_length=longest,
        return_offsets_mapping=True, return_tensors="pt",
    )
    places = inputs.pop("offset_mapping")[0]
    inside = torch.tensor([part == 1 for part in inputs.sequence_ids(0)])
    with torch.no_grad():
        output = model(**inputs)
    start, end = output.start_logits[0], output.end_logits[0]
    spans = start[:, None] + end[None, :]  # every first and last token
    spans = spans.masked_fill(~(inside[:, None] & inside[None, :]), -torch.inf)
    ones = torch.ones_like(spans, dtype=torch.bool)
    spans = spans.masked_fill(~(ones.triu() & ones.tril(longest_answer - 1)), -torch.inf)
    first, last = divmod(int(spans.argmax()), len(start))
    answered = bool(spans.max() > start[0] + end[0])
    words = context[places[first, 0] : places[last, 1]].strip()
    print(question, "->", words if answered else "(no answer)")"""

    def logits(self, output: Any) -> Tensor:
        return torch.stack([output.start_logits, output.end_logits], 1)

    def weight(self, batch: Batch) -> int:
        """Examples that have a loss."""
        return int((batch.labels[:, 0] != IGNORED_LABEL).sum())

    def terms(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        padding_BS = batch.inputs["attention_mask"].to(logits.device) == 0
        seen = wide(logits).masked_fill(padding_BS[:, None], -torch.inf).flatten(0, 1)
        return seen, batch.labels.to(logits.device).flatten()

    def counts(self, logits: Tensor, examples: Examples, rows: Rows) -> Sums:
        assert examples.passages is not None
        said = predict(logits, examples, rows)
        pairs = [(s, examples.passages.answers[i]) for s, i in zip(said, rows, strict=True)]
        return {
            "exact": sum(exact_match(answer, right) for answer, right in pairs),
            "f1": sum(f1(answer, right) for answer, right in pairs),
        }

    def results(self, sums: Sums) -> dict[str, float]:
        return {"f1": sums["f1"] / sums["n"], "exact_match": sums["exact"] / sums["n"]}

    def interval(self, sums: Sums) -> Ends | None:
        return wilson(sums["f1"], sums["n"])

    def answers(self, logits: Tensor, examples: Examples, rows: Rows) -> list[str]:
        return [s or "(no answer)" for s in predict(logits, examples, rows)]

    def constant(self, train: Examples, test: Examples) -> float | None:
        """F1 of never giving an answer; None where every question has one."""
        assert test.passages is not None
        without = sum(not right for right in test.passages.answers)
        return without / len(test) or None
